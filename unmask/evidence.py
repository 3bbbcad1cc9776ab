"""The evidence behind a video's score, as the report shows it: scored faces, tracks of them, and the video as a whole.

Axes: H rows, W columns (of an image) or windows (of a series), C = 3 channels in RGB order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.explain import METHOD
from unmask.records import FaceScore, VideoScore

__all__ = ["FrameEvidence", "ReportEntry", "TrackEvidence", "fair_choice"]


@dataclass(frozen=True, slots=True, eq=False)
class FrameEvidence:
    """One scored face in one frame.

    Args:
        pts_s: Presentation time in seconds.
        index: The frame's position in presentation order, from 0.
        score: In [0, 1].
        crop_HWC: The face as RGB uint8, or None. Any size; 112 px show in full, more only costs memory.
        heatmap_HW: Float32 in [0, 1] over the crop (any size), or None.
        probability: The face detector's, in [0, 1], or None where a face was followed rather than found.
    """

    pts_s: float
    index: int
    score: float
    crop_HWC: NDArray[np.uint8] | None = None
    heatmap_HW: NDArray[np.float32] | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.pts_s) and 0.0 <= self.score <= 1.0):
            raise ValueError(f"a frame has a finite time and a score in [0, 1]; got {self.pts_s}, {self.score}")
        _check_picture("a crop", self.crop_HWC)
        heat_HW = self.heatmap_HW
        if heat_HW is not None and (heat_HW.ndim != 2 or heat_HW.size == 0 or self.crop_HWC is None):
            raise ValueError(f"a heat map is (H, W) and lies over a crop; got shape {heat_HW.shape}")


@dataclass(frozen=True, slots=True, eq=False)
class TrackEvidence:
    """One face followed through a video.

    Args:
        track_id: As in `FaceScore`.
        frames: In order of time.
        times_s_W: Where each window stands, in seconds, ascending.
        scores_W: The window's score in [0, 1].
        spread_W: The standard deviation of the score there, drawn as a band of plus and minus one.
    """

    track_id: int
    frames: tuple[FrameEvidence, ...]
    times_s_W: NDArray[np.floating[Any]] = field(default_factory=lambda: np.zeros(0))
    scores_W: NDArray[np.floating[Any]] = field(default_factory=lambda: np.zeros(0))
    spread_W: NDArray[np.floating[Any]] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        shapes = (self.times_s_W.shape, self.scores_W.shape, self.spread_W.shape)
        if len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ValueError(f"times, scores and spread of windows have one shape (W,); got {shapes}")
        if not all(np.isfinite(series).all() for series in (self.times_s_W, self.scores_W, self.spread_W)):
            raise ValueError(f"times, scores and spread of track {self.track_id} are finite numbers")
        times = [frame.pts_s for frame in self.frames]
        if times != sorted(times) or (np.diff(self.times_s_W) < 0).any():
            raise ValueError(f"frames and windows of track {self.track_id} come in order of time")

    @property
    def is_stray(self) -> bool:
        """Whether the face was seen only once, as false detections are."""
        return len(self.frames) == 1

    @property
    def pictured(self) -> list[FrameEvidence]:
        """The frames that have a crop."""
        return [frame for frame in self.frames if frame.crop_HWC is not None]


@dataclass(frozen=True, slots=True, eq=False)
class ReportEntry:
    """One video in the report.

    Args:
        score: The result, as `--json` prints it.
        tracks: The evidence for its faces; a face without evidence is drawn from its segments alone.
        model_card: What the checkpoint's description says (architecture, preprocessing, calibration, provenance,
            warnings), as plain nested values; under `card` its sections, as `unmask.card.Section.to_json` gives them.
        abstain: The band of scores [low, high] in which the model gives no verdict, or None.
        thumbnail_HWC: A frame as RGB uint8, or None to show the most suspicious face of the track that decides.
        heatmap_method: One sentence on how the heat maps were made.
        decides: The track whose score is the video's, or None where there is none or it is not known.
    """

    score: VideoScore
    tracks: tuple[TrackEvidence, ...] = ()
    model_card: Mapping[str, Any] = field(default_factory=dict)
    abstain: tuple[float, float] | None = None
    thumbnail_HWC: NDArray[np.uint8] | None = None
    heatmap_method: str = METHOD
    decides: int | None = None

    def __post_init__(self) -> None:
        _check_picture("a thumbnail", self.thumbnail_HWC)
        known = {face.track_id for face in self.score.faces}
        strays = {track.track_id for track in self.tracks} - known
        if strays:
            raise ValueError(f"evidence for tracks {sorted(strays)} that have no score in {self.score.input!r}")
        if self.decides is not None and self.decides not in known:
            raise ValueError(f"track {self.decides} cannot decide {self.score.input!r}: it has no score there")
        if self.abstain is not None and not 0.0 <= self.abstain[0] <= self.abstain[1] <= 1.0:
            raise ValueError(f"a band lies in [0, 1], low before high; got {self.abstain}")

    @property
    def faces(self) -> list[tuple[FaceScore, TrackEvidence]]:
        """Each face with its evidence, empty where there is none: the one that decides; the most suspicious; strays."""
        found = {track.track_id: track for track in self.tracks}
        pairs = [(face, found.get(face.track_id) or TrackEvidence(face.track_id, ())) for face in self.score.faces]
        return sorted(pairs, key=lambda pair: (pair[0].track_id != self.decides, pair[1].is_stray, -pair[0].score))

    @property
    def band(self) -> tuple[float, float] | None:
        """The band without a verdict, or None where it has no width."""
        return self.abstain if self.abstain is not None and self.abstain[0] < self.abstain[1] else None

    @property
    def is_untrained(self) -> bool:
        """Whether the score came from random weights."""
        return self.score.model is not None and not self.score.model.trained


def fair_choice(frames: Sequence[FrameEvidence], limit: int) -> list[FrameEvidence]:
    """At most `limit` frames in order of time: the most suspicious sixth, the others spread evenly."""
    if len(frames) <= limit:
        return list(frames)
    worst = sorted(range(len(frames)), key=lambda i: -frames[i].score)[: (limit + 5) // 6]
    rest = [i for i in range(len(frames)) if i not in set(worst)]
    even = np.linspace(0, len(rest) - 1, limit - len(worst)).round().astype(int)
    return [frames[i] for i in sorted({*worst, *(rest[i] for i in even)})]


def _check_picture(what: str, image_HWC: NDArray[np.uint8] | None) -> None:
    if image_HWC is None:
        return
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8 or image_HWC.size == 0:
        raise ValueError(f"{what} is uint8 of shape (H, W, 3); got {image_HWC.dtype} of shape {image_HWC.shape}")
