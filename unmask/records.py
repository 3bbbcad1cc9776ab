"""The value types that travel between the parts of Unmask. They check their own shapes.

Axes: N items, H rows, W columns, C = 3 channels in RGB order, K = 5 landmarks (left eye, right eye, nose, left mouth
corner, right mouth corner, as the viewer sees them). Coordinates are pixels of the displayed frame (rotation applied),
x to the right and y down, boxes as x1, y1, x2, y2. Times are presentation times in seconds; ranges are half open.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.errors import Reason

__all__ = [
    "ErrorInfo",
    "FaceQuality",
    "FaceScore",
    "Faces",
    "Frame",
    "FrameCount",
    "ModelInfo",
    "Segment",
    "Status",
    "Verdict",
    "VideoInfo",
    "VideoScore",
]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a container says of its first video stream, and what its packets say.

    `frames` counts packets of the index, not the header's claim: headers lie.
    """

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    duration_s: float
    frames: int
    rate_fps: float
    interlaced: bool = False

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame, upright.

    Args:
        image_HWC: RGB, uint8, shape (H, W, 3), C-contiguous.
        pts_s: Presentation time in seconds from the container.
        index: Position in presentation order in the whole video, from 0.
        is_corrupt: The decoder reported damage in it or in what it was predicted from.
    """

    image_HWC: NDArray[np.uint8]
    pts_s: float
    index: int
    is_corrupt: bool = False

    def __post_init__(self) -> None:
        shape, dtype = self.image_HWC.shape, self.image_HWC.dtype
        if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
            raise ValueError(f"a frame is uint8 of shape (H, W, 3); got {dtype} of shape {shape}")

    def __repr__(self) -> str:
        height, width, _ = self.image_HWC.shape
        return f"Frame({width}x{height}, pts_s={self.pts_s:.3f}, index={self.index}, is_corrupt={self.is_corrupt})"


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The faces of one frame, most probable first.

    Args:
        boxes_N4: float32 (N, 4): x1, y1, x2, y2 in pixels of the frame. May reach outside it.
        probabilities_N: float32 (N,) in [0, 1].
        landmarks_NK2: float32 (N, 5, 2): x, y in pixels of the frame.
        sharpness_N: float32 (N,) in [0, 1], see `unmask.quality.sharpness_of`; NaN where it is not known, None where
            nobody measured it.
    """

    boxes_N4: NDArray[np.float32]
    probabilities_N: NDArray[np.float32]
    landmarks_NK2: NDArray[np.float32]
    sharpness_N: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.probabilities_N)
        shapes = (self.boxes_N4.shape, self.probabilities_N.shape, self.landmarks_NK2.shape)
        if shapes != ((n, 4), (n,), (n, 5, 2)):
            raise ValueError(f"faces have shapes (N, 4), (N,), (N, 5, 2); got {shapes}")
        if self.sharpness_N is not None and self.sharpness_N.shape != (n,):
            raise ValueError(f"{n} faces have {n} values of sharpness; got shape {self.sharpness_N.shape}")

    def __len__(self) -> int:
        return len(self.probabilities_N)

    def __repr__(self) -> str:
        return f"Faces({len(self)})"

    @classmethod
    def none(cls) -> "Faces":
        """No face at all."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))


class Verdict(StrEnum):
    """The answer to "is this clip real?"."""

    AUTHENTIC = "authentic"
    MANIPULATED = "manipulated"
    INCONCLUSIVE = "inconclusive"


class Status(StrEnum):
    """How far a video came: a score; an analysis that found nothing to score; an error."""

    SCORED = "scored"
    UNSCORED = "unscored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a track without a gap, and its score over that stretch, [start_s, end_s)."""

    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True, slots=True)
class FaceQuality:
    """How well a face can be seen, in one frame or in the median over a track; `unmask.quality` measures it.

    Args:
        side_px: Shorter side of its box in pixels of the frame.
        sharpness: In [0, 1]: some 0.57 to 0.71 in a sharp portrait, 0.25 where the face's detail is gone; None where
            nobody measured it.
        yaw_deg: How far it is turned to the left or right, in degrees, 0 or more; 0 is frontal.
        pitch_deg: How far it looks up or down.
        roll_deg: How far it is tilted in the picture.
    """

    side_px: float
    sharpness: float | None
    yaw_deg: float
    pitch_deg: float
    roll_deg: float


@dataclass(frozen=True, slots=True)
class FaceScore:
    """One tracked face: its score in [0, 1] and the standard deviation of that score over its windows.

    `quality` is the median over its scored frames; None where that is not known.
    """

    track_id: int
    score: float
    uncertainty: float
    segments: tuple[Segment, ...]
    quality: FaceQuality | None = None


@dataclass(frozen=True, slots=True)
class FrameCount:
    """The account of the frames that were asked for: received = scored + sum of dropped."""

    received: int = 0
    scored: int = 0
    dropped: Mapping[Reason, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.received != self.scored + sum(self.dropped.values()):
            raise ValueError(f"frames unaccounted for: received {self.received}, scored {self.scored}, {self.dropped}")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model gave a score. `sha256` is the digest of its checkpoint, or of its weights where none was saved."""

    name: str
    version: str
    sha256: str
    trained: bool


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Why a video has no score: a stable code and one sentence."""

    code: Reason
    message: str


@dataclass(frozen=True, slots=True)
class VideoScore:
    """The result for one input: what `unmask score --json` prints, one object a video."""

    id: str
    input: str
    status: Status
    verdict: Verdict
    score: float | None = None
    score_kind: str = "uncalibrated_probability"
    calibrated: bool = False
    threshold: float | None = None
    model: ModelInfo | None = None
    media: VideoInfo | None = None
    faces: tuple[FaceScore, ...] = ()
    frames: FrameCount = field(default_factory=FrameCount)
    timings_s: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: ErrorInfo | None = None

    def __post_init__(self) -> None:
        if self.score is not None and not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise ValueError(f"a score lies in [0, 1]; got {self.score}")
        if self.status is Status.SCORED and self.score is None:
            raise ValueError("a scored video has a score")
        if self.status is not Status.SCORED and (self.error is None or self.verdict is not Verdict.INCONCLUSIVE):
            raise ValueError("a video without a score says why, and is inconclusive")

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        plain: dict[str, Any] = asdict(self)
        return plain
