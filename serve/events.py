"""What happens to streams and analyses, as `/events` tells it: a model for each kind, for the OpenAPI description."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from serve.schemas import ErrorBody, FaceResult, Frames, VideoResult

__all__ = [
    "AccountEvent",
    "AnalysisEvent",
    "DroppedEvent",
    "EndEvent",
    "GapEvent",
    "LiveFace",
    "ProgressEvent",
    "QueuedEvent",
    "ResultEvent",
    "ScoreEvent",
    "StartEvent",
    "StateEvent",
    "StreamEvent",
    "TrackEndEvent",
]

_Verdict = Literal["authentic", "manipulated", "inconclusive"]


class _StreamEvent(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    seq: int | None = Field(None, description="Counts from 0 over the stream's life; none where the service speaks.")
    stream: str | None = None
    at: float = Field(description="Unix seconds.")


class StartEvent(_StreamEvent):
    """A process begins to score the stream, or another model does."""

    event: Literal["start"]
    input: str
    resumed: bool
    model: dict[str, Any]
    score_kind: Literal["calibrated_probability", "uncalibrated_probability", "untrained"]
    calibrated: bool
    threshold: float
    band: list[float] = Field(description="Between its two scores there is no verdict.")
    window: int = Field(description="Frames of a track that the temporal head looks back on.")
    fps: float | None


class StateEvent(_StreamEvent):
    """The source does something else now."""

    event: Literal["state"]
    state: str = Field(description="connecting, live, stalled, reconnecting, ended, failed.")
    reason: str | None
    message: str | None
    retry_in_s: float | None = None
    media: dict[str, Any] | None = None


class GapEvent(_StreamEvent):
    """A stretch of which there is nothing; no window spans it."""

    event: Literal["gap"]
    reason: str
    start_s: float
    end_s: float
    message: str


class DroppedEvent(_StreamEvent):
    """Frames that were due and have no score."""

    event: Literal["dropped"]
    pts_s: float
    reason: str
    count: int


class LiveFace(BaseModel):
    """A face of a scored frame. Scores are in [0, 1], 1 for manipulated."""

    model_config = ConfigDict(extra="forbid")

    track_id: int
    score: float = Field(description="Of the track's last 30 seconds.")
    uncertainty: float
    verdict: _Verdict
    warnings: list[str]
    frame_score: float
    window_score: float
    window_frames: int
    after_gap: bool
    box: list[float] = Field(description="Left, top, right, bottom in pixels.")
    probability: float = Field(description="That it is a face.")
    quality: dict[str, float | None]


class ScoreEvent(_StreamEvent):
    """A frame was scored."""

    event: Literal["score"]
    pts_s: float = Field(description="The stream's time.")
    latency_s: float = Field(description="From the frame's arrival to its score.")
    verdict: _Verdict
    score: float
    warnings: list[str]
    faces: list[LiveFace]


class TrackEndEvent(_StreamEvent):
    """A face was not seen for long enough; what became of it."""

    event: Literal["track_end"]
    face: FaceResult
    verdict: _Verdict
    warnings: list[str]


class AccountEvent(_StreamEvent):
    """The account so far."""

    event: Literal["account"]
    frames: Frames
    resets: dict[str, int]
    reconnects: dict[str, int]


class EndEvent(_StreamEvent):
    """The last event of a stream."""

    event: Literal["end"]
    reason: str | None
    status: Literal["scored", "unscored", "failed"]
    frames: Frames
    resets: dict[str, int]
    reconnects: dict[str, int]
    error: ErrorBody | None


class QueuedEvent(BaseModel):
    """An analysis waits."""

    ahead: int


class ProgressEvent(BaseModel):
    """An analysis runs."""

    done: float = Field(ge=0, le=1)


class ResultEvent(BaseModel):
    """An analysis is done: its last event."""

    result: VideoResult


StreamEvent: TypeAlias = Annotated[
    StartEvent | StateEvent | GapEvent | ScoreEvent | DroppedEvent | TrackEndEvent | AccountEvent | EndEvent,
    Field(discriminator="event"),
]
"""What stands in `data:` of a stream's event."""
AnalysisEvent: TypeAlias = QueuedEvent | ProgressEvent | ResultEvent
"""The same of an analysis; `event:` says which: queued, progress, result."""
