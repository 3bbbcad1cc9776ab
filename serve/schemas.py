"""What goes over the wire, for the OpenAPI description. Results have the fields of `unmask score --json`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AnalysisRequest",
    "AnalysisResource",
    "CardSection",
    "ErrorBody",
    "ErrorResponse",
    "FaceResult",
    "Frames",
    "ModelRequest",
    "ModelResource",
    "Segment",
    "StreamChange",
    "StreamRequest",
    "StreamResource",
    "VideoResult",
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(BaseModel):
    """Why something was refused or gave no score."""

    code: str = Field(description="Stable: STREAM_*, MEDIA_UNREADABLE, NO_FACE, TOO_LARGE, BUSY, NOT_FOUND, ...")
    message: str = Field(description="One sentence.")


class ErrorResponse(BaseModel):
    """The body of every refusal."""

    error: ErrorBody


class AnalysisRequest(_Request):
    """A video to be fetched and analysed."""

    url: str = Field(max_length=4096, description="http or https.")
    frames: int | None = Field(None, ge=1, le=100_000, description="Frames, spread evenly; 32 where nothing is said.")
    fps: float | None = Field(None, gt=0, le=1000, description="Or frames a second.")
    every: int | None = Field(None, ge=1, description="Or every N-th frame.")
    model: str = Field("default", max_length=100)
    callback_url: str | None = Field(None, max_length=4096, description="Told of the result by a signed POST.")


class Segment(BaseModel):
    """A stretch of a track without a gap."""

    start_s: float
    end_s: float
    score: float


class FaceResult(BaseModel):
    """One tracked face."""

    model_config = ConfigDict(extra="allow")

    track_id: int
    score: float
    uncertainty: float
    segments: list[Segment]


class Frames(BaseModel):
    """The account: received = scored + sum of dropped."""

    received: int
    scored: int
    dropped: dict[str, int]


class VideoResult(BaseModel):
    """What `unmask score --json` prints."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    id: str
    input: str
    status: Literal["scored", "unscored", "failed"]
    verdict: Literal["authentic", "manipulated", "inconclusive"]
    score: float | None
    score_kind: str
    calibrated: bool
    threshold: float | None
    model: dict[str, Any] | None
    media: dict[str, Any] | None
    faces: list[FaceResult]
    frames: Frames
    timings_s: dict[str, float]
    warnings: list[str]
    error: dict[str, Any] | None


class AnalysisResource(BaseModel):
    """An upload or URL, and how far it is."""

    id: str
    state: Literal["queued", "running", "done"]
    input: str
    model: str
    created_at: float = Field(description="Unix seconds.")
    finished_at: float | None
    callback: Literal["owed", "delivered", "failed", "refused"] | None = Field(
        description="Of a finished analysis with a callback_url. One that is owed is tried again after a restart."
    )
    progress: float = Field(ge=0, le=1)
    result: VideoResult | None = Field(description="Once it is done, whether it has a score or not.")
    error: ErrorBody | None = Field(description="Why a finished one has no score.")


class StreamRequest(_Request):
    """A live source to be watched until it is removed."""

    url: str = Field(max_length=4096, description="rtsp, rtsps, http or https (HLS too).")
    name: str | None = Field(None, max_length=200)
    fps: float = Field(5.0, gt=0, le=120, description="Frames a second that are scored.")
    model: str = Field("default", max_length=100)
    transport: Literal["tcp", "udp"] = Field("tcp", description="Of RTSP.")
    paused: bool = False


class StreamChange(_Request):
    """What may be changed of a stream."""

    name: str | None = Field(None, max_length=200)
    fps: float | None = Field(None, gt=0, le=120)
    model: str | None = Field(None, max_length=100)
    paused: bool | None = None


class StreamResource(BaseModel):
    """A stream and what is known of it."""

    id: str
    name: str
    url: str = Field(description="Without user and password.")
    model: str
    fps: float
    transport: str
    paused: bool
    created_at: float
    state: str = Field(description="starting, connecting, live, stalled, reconnecting, moving, paused, ended, failed.")
    reason: str | None
    message: str | None
    error: ErrorBody | None = Field(description="Why the source is not there: STREAM_AUTH_FAILED and the like.")
    retry_in_s: float | None
    media: dict[str, Any] | None
    lag_s: float
    window_fill: float
    last: dict[str, Any] | None = Field(description="The last score.")
    frames: Frames
    resets: dict[str, int]
    reconnects: dict[str, int]


class ModelRequest(_Request):
    """A checkpoint for a name."""

    model: str = Field(max_length=4096, description="A checkpoint's path on the server, a preset or a timm backbone.")


class CardSection(BaseModel):
    """A part of a model's card."""

    title: str
    text: list[str] = Field(description="Paragraphs.")
    columns: list[str] = Field(default=[], description="Headings of a table; none where there is no table.")
    rows: list[list[str | int | float | None]] = []


class ModelResource(BaseModel):
    """A model that is served."""

    model_config = ConfigDict(protected_namespaces=())

    name: str = Field(description="What callers ask for.")
    model: str = Field(description="What it calls itself.")
    version: str
    sha256: str
    trained: bool
    card: list[CardSection] = Field(description="What `unmask model-card` prints: data, method, errors, limits.")
