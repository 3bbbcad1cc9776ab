"""Faces joined over time into tracks, one frame after the other, so that files and live streams share it.

Axes: N faces of a frame, M tracks.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from unmask.errors import Reason
from unmask.records import Faces

__all__ = ["Sighting", "TrackedFrame", "Tracker", "reason_not_to_look"]

# A face may move by this share of its size between two frames that are up to _NEAR_S apart, and still be itself.
_REACH = 0.6
# The reach grows with time up to this multiple of the face's size.
_MAX_REACH = 1.5
_NEAR_S = 0.1
# Sizes of one face differ at most by this factor from frame to frame.
_MAX_RESIZE = 2.0
# The least side in which the detector's smallest window (12 px at twice the size) could lie with any meaning.
_MIN_SIDE_PX = 20


def reason_not_to_look(height: int, width: int, *, is_corrupt: bool) -> Reason | None:
    """Why a decoded frame is not searched for faces to score, or None where it is.

    What damage did to a face would be taken for a manipulation, and a picture may be too small to hold a face.
    """
    if is_corrupt:
        return Reason.CORRUPT_FRAME
    return Reason.FRAME_TOO_SMALL if min(height, width) < _MIN_SIDE_PX else None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A face of the frame just seen: whose it is, and whether frames without it lie before (a gap)."""

    track_id: int
    after_gap: bool


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFrame:
    """One frame that was asked for: its faces and whose they are, or why there are none.

    Args:
        pts_s: Presentation time.
        index: Position in presentation order in the whole video.
        faces: The faces in it.
        sightings: Whose they are, one a face.
        reason: Why there is no face, or None.
    """

    pts_s: float
    index: int
    faces: Faces
    sightings: Sequence[Sighting]
    reason: Reason | None

    def __post_init__(self) -> None:
        if len(self.sightings) != len(self.faces) or (self.reason is None) != (len(self.faces) > 0):
            raise ValueError(
                f"a frame has one sighting a face, or a reason why it has none; got {len(self.faces)} faces, "
                f"{len(self.sightings)} sightings, reason {self.reason}"
            )


@dataclass(slots=True)
class _Live:
    track_id: int
    box_4: NDArray[np.float32]
    velocity_2: NDArray[np.float64]
    seen_s: float
    frame: int


class Tracker:
    """Gives every face of every frame a track, by predicted place and size.

    Faces are matched to tracks at least total cost (the Hungarian method, as in SORT, Bewley et al. 2016); the cost is
    the distance of centres over the face's size, because boxes of sparse samples need not overlap. A track that is not
    seen for `lost_after_s` and for more than two frames ends; if the face comes back later, it is a new track. A scene
    cut ends all tracks.

    Args:
        lost_after_s: How long a face may be away and keep its track.
        first_id: Of the first track; above 1 where a stream goes on that began elsewhere.
    """

    def __init__(self, lost_after_s: float = 1.0, *, first_id: int = 1) -> None:
        self._lost_after_s = lost_after_s
        self._live: list[_Live] = []
        self._frame = 0
        self._ids = itertools.count(first_id)

    def track(self, pts_s: float, index: int, seen: Faces | Reason, *, cut: bool = False) -> TrackedFrame:
        """Take the next frame that was wanted, whatever became of it.

        Args:
            pts_s: Its presentation time; never before that of the last frame.
            index: Its position in presentation order.
            seen: What the detector found, perhaps nothing, or why the frame was not looked at (damaged, missing, ...).
            cut: A scene cut lies before this frame.
        """
        if isinstance(seen, Reason):
            self.skip()
            return TrackedFrame(pts_s, index, Faces.none(), (), seen)
        sightings = self.update(seen, pts_s, cut=cut)
        return TrackedFrame(pts_s, index, seen, sightings, None if len(seen) else Reason.NO_FACE)

    def update(self, faces: Faces, pts_s: float, *, cut: bool = False) -> list[Sighting]:
        """Take the faces of the next frame.

        Args:
            faces: What the detector found, perhaps nothing.
            pts_s: The frame's presentation time; never before that of the last frame.
            cut: A scene cut lies before this frame.

        Returns:
            One sighting a face, in the order of the faces.
        """
        self._frame += 1
        if cut:
            self._live.clear()
        self._live = [t for t in self._live if pts_s - t.seen_s <= self._lost_after_s or self._frame - t.frame <= 2]
        matches = self._match(faces.boxes_N4, pts_s)
        return [self._sight(faces.boxes_N4[n], pts_s, matches.get(n)) for n in range(len(faces))]

    def skip(self, frames: int = 1) -> None:
        """Frames were wanted and could not be seen (damaged or missing): what follows comes after a gap."""
        self._frame += frames

    def _match(self, boxes_N4: NDArray[np.float32], pts_s: float) -> dict[int, _Live]:
        if not self._live or not len(boxes_N4):
            return {}
        known_M4 = np.stack([t.box_4 for t in self._live]).astype(np.float64)
        elapsed_M = pts_s - np.array([t.seen_s for t in self._live])
        # A speed measured once says little about a far future.
        drift_M2 = np.stack([t.velocity_2 for t in self._live]) * np.minimum(elapsed_M, 2 * _NEAR_S)[:, None]
        size_N = np.sqrt(np.prod(np.maximum(boxes_N4[:, 2:] - boxes_N4[:, :2], 1.0), axis=1, dtype=np.float64))
        size_M = np.sqrt(np.prod(np.maximum(known_M4[:, 2:] - known_M4[:, :2], 1.0), axis=1))
        centre_N2, centre_M2 = _centres(boxes_N4), _centres(known_M4) + drift_M2
        away_NM = np.linalg.norm(centre_N2[:, None] - centre_M2[None], axis=-1) / np.sqrt(size_N[:, None] * size_M)
        resize_NM = np.abs(np.log(size_N[:, None] / size_M))
        reach_M = np.clip(_REACH * elapsed_M / _NEAR_S, _REACH, _MAX_REACH)
        allowed_NM = (away_NM <= reach_M) & (resize_NM <= np.log(_MAX_RESIZE))
        cost_NM = np.where(allowed_NM, away_NM + resize_NM, 1e6)
        rows, columns = linear_sum_assignment(cost_NM)
        return {int(n): self._live[m] for n, m in zip(rows, columns, strict=True) if allowed_NM[n, m]}

    def _sight(self, box_4: NDArray[np.float32], pts_s: float, track: _Live | None) -> Sighting:
        if track is None:
            track = _Live(next(self._ids), box_4, np.zeros(2), pts_s, self._frame)
            self._live.append(track)
            return Sighting(track.track_id, after_gap=True)
        after_gap = track.frame != self._frame - 1
        moved_2 = (_centres(box_4[None]) - _centres(track.box_4[None]))[0]
        track.velocity_2 = moved_2 / max(pts_s - track.seen_s, 1e-3)
        track.box_4, track.seen_s, track.frame = box_4, pts_s, self._frame
        return Sighting(track.track_id, after_gap)


def _centres(boxes_N4: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.asarray((boxes_N4[:, :2].astype(np.float64) + boxes_N4[:, 2:]) / 2)
