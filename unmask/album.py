"""The pictures of one face that the report shows: a fair choice of bounded size from a track of any length."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unmask.evidence import FrameEvidence

__all__ = ["Album"]

# Pictures spread evenly over the track, at most; and of the most suspicious ones, which also get heat maps.
_SPREAD, _SUSPECTS = 64, 6


class Album:
    """Keeps frames spread evenly over a track, and the most suspicious ones, as they come."""

    def __init__(self) -> None:
        self._count = 0
        self._stride = 1
        self._spread: list[FrameEvidence] = []
        # The serial number breaks ties, so that frames are never compared.
        self._suspects: list[tuple[float, int, FrameEvidence]] = []
        self._serial = itertools.count()

    def add(self, crop_HWC: NDArray[np.uint8], *, pts_s: float, index: int, score: float, probability: float) -> None:
        """Offer a frame.

        Args:
            crop_HWC: The face as the model saw it, uint8 (H, W, 3). It is kept, not copied.
            pts_s: Presentation time.
            index: Position in the video.
            score: In [0, 1].
            probability: The face detector's, in [0, 1].
        """
        frame = FrameEvidence(pts_s=pts_s, index=index, score=score, crop_HWC=crop_HWC, probability=probability)
        if self._count % self._stride == 0:
            self._spread.append(frame)
        self._count += 1
        if len(self._spread) > _SPREAD:
            # Every other one goes, and from now on half as many are taken.
            del self._spread[1::2]
            self._stride *= 2
        heapq.heappush(self._suspects, (score, next(self._serial), frame))
        if len(self._suspects) > _SUSPECTS:
            heapq.heappop(self._suspects)

    def frames(
        self, heatmaps: Callable[[list[NDArray[np.uint8]]], NDArray[np.float32]] | None
    ) -> tuple[FrameEvidence, ...]:
        """What was kept, in order of time.

        Args:
            heatmaps: From N crops to maps float32 (N, H, W) in [0, 1]; called once, with the most suspicious crops in
                order of time. None to do without maps.
        """
        suspects = sorted((frame for _, _, frame in self._suspects), key=lambda frame: frame.pts_s)
        crops = [frame.crop_HWC for frame in suspects if frame.crop_HWC is not None]
        if crops and heatmaps is not None:
            suspects = [replace(f, heatmap_HW=m) for f, m in zip(suspects, heatmaps(crops), strict=True)]
        chosen = {frame.index: frame for frame in [*self._spread, *suspects]}
        return tuple(sorted(chosen.values(), key=lambda frame: frame.pts_s))
