"""The rolling window: mean and unbiased standard deviation of the features of the last T frames of one track.

`mean_std` is the definition (system S0: DFGC-VRA 2023). `rolling_mean_std` applies it to all windows of a finished
track; `RollingWindow` keeps it up to date frame by frame, for live streams. The features of a frame are computed once,
however many windows it belongs to. `MaskedWindow` is for models that look at the frames themselves and at which of them
are there (system S4).

Axes: B clips, T frames of a clip or window, t those of a window so far, L frames of a track, D features, S = 2 D
statistics (means, then stds).
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.errors import UsageError

__all__ = ["MaskedWindow", "RollingWindow", "WindowStatistics", "mean_std", "rolling_mean_std"]

# Frames of a track gathered into windows at a time: bounds the memory at 256 x T x D floats.
_CHUNK = 256


def mean_std(features_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    """Mean and unbiased standard deviation over the valid frames of each clip.

    Args:
        features_BTD: (B, T, D). What stands in frames that are not valid, NaN included, has no effect.
        valid_BT: bool (B, T).

    Returns:
        float32 (B, 2 D): the means, then the standard deviations. With one valid frame the standard deviations are
        0, with none all statistics are. Gradients are finite everywhere (0 through a standard deviation of 0).
    """
    features_BTD, valid_BT1 = features_BTD.float(), valid_BT[..., None]
    count_B1 = valid_BT.sum(1, keepdim=True)
    mean_BD = torch.where(valid_BT1, features_BTD, 0.0).sum(1) / count_B1.clamp(min=1)
    offset_BTD = torch.where(valid_BT1, features_BTD - mean_BD[:, None], 0.0)
    variance_BD = offset_BTD.square().sum(1) / (count_B1 - 1).clamp(min=1)
    # The inner `where` keeps the infinite slope of the square root at 0 out of the gradient.
    positive_BD = variance_BD > 0
    std_BD = torch.where(positive_BD, torch.where(positive_BD, variance_BD, 1.0).sqrt(), 0.0)
    return torch.cat([mean_BD, std_BD], 1)


def rolling_mean_std(features_LD: Tensor, window: int, gap_before_L: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`mean_std` of the window that ends at each frame of a track. Device-agnostic, for bulk scoring.

    Args:
        features_LD: (L, D), in order of time.
        window: T, the greatest number of frames in a window.
        gap_before_L: bool (L,): a gap lies between this frame and the one before. No window spans it.

    Returns:
        float32 (L, 2 D) statistics, and int64 (L,): how many frames each window holds, 1 to T.
    """
    _check_length(window)
    length, device = len(features_LD), features_LD.device
    index_L = torch.arange(length, device=device)
    start_L = torch.zeros_like(index_L)
    if gap_before_L is not None:
        start_L = torch.cummax(torch.where(gap_before_L.to(device), index_L, 0), 0).values if length else start_L
    count_L = torch.minimum(index_L - start_L + 1, torch.full_like(index_L, window))
    back_T = torch.arange(window - 1, -1, -1, device=device)
    chunks = [features_LD.new_zeros((0, 2 * features_LD.shape[1]), dtype=torch.float32)]
    for index_l, count_l in zip(torch.split(index_L, _CHUNK), torch.split(count_L, _CHUNK), strict=True):
        frames_lT = (index_l[:, None] - back_T).clamp(min=0)
        chunks.append(mean_std(features_LD[frames_lT], back_T < count_l[:, None]))
    return torch.cat(chunks), count_L


@dataclass(frozen=True, slots=True, eq=False)
class WindowStatistics:
    """What a rolling window says after a frame.

    Args:
        statistics_S: float32 (2 D,): means, then unbiased standard deviations (0 when `frames` is 1).
        frames: How many frames the window holds, 1 to T.
        start_s: Presentation time of its first frame.
        end_s: Presentation time of its last frame.
    """

    statistics_S: NDArray[np.float32]
    frames: int
    start_s: float
    end_s: float

    def __repr__(self) -> str:
        return f"WindowStatistics(frames={self.frames}, start_s={self.start_s:.3f}, end_s={self.end_s:.3f})"


class RollingWindow:
    """Mean and standard deviation over the last T frames of one track, fed frame by frame on the host.

    Frames since the last gap are taken in blocks of T (van Herk 1992; Gil and Werman 1993). A window is a suffix of
    the last full block and the whole of the current one; the moments of both are built by adding only (Welford 1962)
    and merged (Chan, Golub and LeVeque 1979). So a frame costs O(D), and as nothing is ever subtracted, nothing
    drifts: the error is that of double precision, after any number of frames and for any offset.

    Args:
        length: T, the greatest number of frames in the window.
        dim: D.
    """

    def __init__(self, length: int, dim: int) -> None:
        _check_length(length)
        self.length, self.dim = length, dim
        # The current block, filled up to `_position`, with the full block before it.
        self._current_TD = np.zeros((length, dim), np.float32)
        self._previous_TD = np.zeros((length, dim), np.float32)
        self._times_s: deque[float] = deque(maxlen=length)
        # Moments of the last k frames of the previous block lie at row k (row 0: of none).
        self._suffix_means_TD = np.zeros((length, dim))
        self._suffix_squares_TD = np.zeros((length, dim))
        self._mean_D, self._squares_D = np.zeros(dim), np.zeros(dim)
        self._position, self._has_previous = 0, False

    def __len__(self) -> int:
        """How many frames the window holds, 0 to T."""
        return len(self._times_s)

    def mark_gap(self) -> None:
        """Begin anew: the next frame does not follow on the last one."""
        self._times_s.clear()
        self._position, self._has_previous = 0, False
        self._mean_D, self._squares_D = np.zeros(self.dim), np.zeros(self.dim)

    def push(self, feature_D: NDArray[np.floating[Any]], pts_s: float) -> WindowStatistics:
        """Add the next frame of the track.

        Args:
            feature_D: Finite, (D,).
            pts_s: Its presentation time, after the last frame's.

        Raises:
            ValueError: A wrong shape, a number that is not finite, or a time that does not rise. The window is
                unchanged.
        """
        feature_D = np.asarray(feature_D, np.float32)
        _check_feature(feature_D, self.dim)
        if self._times_s and not pts_s > self._times_s[-1]:
            raise ValueError(f"time goes back from {self._times_s[-1]} s to {pts_s} s: call mark_gap() first")
        if self._position == self.length:
            self._begin_block()
        self._current_TD[self._position] = feature_D
        self._position += 1
        _add(self._mean_D, self._squares_D, feature_D, self._position)
        self._times_s.append(pts_s)
        return self._statistics()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The whole state, at most T x D floats, so that a live session can move. No pickle is needed."""
        frames_TD = np.concatenate([self._previous_TD, self._current_TD[: self._position]])
        frames = len(self)
        return {
            "features_TD": frames_TD[len(frames_TD) - frames :].copy(),
            "pts_s_T": np.array(self._times_s, np.float64),
            "length": np.array(self.length),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "RollingWindow":
        """The window that `to_arrays` described. Its statistics go on as if it had never moved.

        Raises:
            ValueError: The arrays do not belong together.
        """
        features_TD, pts_s_T, length = arrays["features_TD"], arrays["pts_s_T"], int(arrays["length"])
        if features_TD.ndim != 2 or pts_s_T.shape != (len(features_TD),) or len(features_TD) > length:
            raise ValueError(
                f"a window has features (t, D) and times (t,) with t <= T; got {features_TD.shape}, {pts_s_T.shape}, "
                f"T={length}"
            )
        window = cls(length, features_TD.shape[1])
        for feature_D, pts_s in zip(features_TD, pts_s_T, strict=True):
            window.push(feature_D, float(pts_s))
        return window

    def _begin_block(self) -> None:
        """The current block is full: compute the moments of its suffixes, which the coming windows need."""
        mean_D, squares_D = np.zeros(self.dim), np.zeros(self.dim)
        for k in range(1, self.length):
            _add(mean_D, squares_D, self._current_TD[self.length - k], k)
            self._suffix_means_TD[k], self._suffix_squares_TD[k] = mean_D, squares_D
        self._previous_TD, self._current_TD = self._current_TD, self._previous_TD
        self._position, self._has_previous = 0, True
        self._mean_D, self._squares_D = np.zeros(self.dim), np.zeros(self.dim)

    def _statistics(self) -> WindowStatistics:
        mean_D, squares_D, frames = self._mean_D, self._squares_D, self._position
        k = self.length - self._position
        if self._has_previous and k:
            frames = self.length
            offset_D = self._suffix_means_TD[k] - mean_D
            mean_D = mean_D + offset_D * (k / frames)
            squares_D = squares_D + self._suffix_squares_TD[k]
            squares_D += np.square(offset_D) * (self._position * k / frames)
        statistics_S = np.empty(2 * self.dim, np.float32)
        statistics_S[: self.dim] = mean_D
        statistics_S[self.dim :] = np.sqrt(squares_D / max(frames - 1, 1))
        return WindowStatistics(statistics_S, frames, self._times_s[0], self._times_s[-1])


class MaskedWindow:
    """The features of one track in the last T frames that were looked at, with a hole where its face was not seen.

    Args:
        length: T, the greatest number of frames in the window.
        dim: D.
    """

    def __init__(self, length: int, dim: int) -> None:
        _check_length(length)
        self.length, self.dim = length, dim
        self._kept: deque[tuple[int, NDArray[np.float32]]] = deque(maxlen=length)
        self._first, self._last_s = 0, -math.inf

    def push(
        self, feature_D: NDArray[np.floating[Any]], frame: int, pts_s: float
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Add the next frame in which the face was seen.

        Args:
            feature_D: Finite, (D,).
            frame: Its number among the frames that were looked at.
            pts_s: Its presentation time. Where time or number do not rise, the window begins anew.

        Returns:
            The window that ends with it, from its T-th last frame on or the first one of the track: features float32
            (t, D), zeros in holes; and bool (t,), where there is a face.

        Raises:
            ValueError: A wrong shape, or a number that is not finite. The window is unchanged.
        """
        feature_D = np.asarray(feature_D, np.float32)
        _check_feature(feature_D, self.dim)
        if not self._kept or pts_s <= self._last_s or frame <= self._kept[-1][0]:
            self._kept.clear()
            self._first = frame
        self._kept.append((frame, feature_D))
        self._last_s = pts_s
        start = max(frame - self.length + 1, self._first)
        features_tD, valid_t = (
            np.zeros((frame - start + 1, self.dim), np.float32),
            np.zeros(frame - start + 1, np.bool_),
        )
        for seen, seen_D in self._kept:
            if seen >= start:
                features_tD[seen - start], valid_t[seen - start] = seen_D, True
        return features_tD, valid_t


def _add(mean_D: NDArray[Any], squares_D: NDArray[Any], feature_D: NDArray[Any], count: int) -> None:
    """Add the `count`-th frame to moments, in place. `squares_D` sums the squared distances from the mean."""
    before_D = feature_D - mean_D
    mean_D += before_D / count
    squares_D += before_D * (feature_D - mean_D)


def _check_feature(feature_D: NDArray[np.float32], dim: int) -> None:
    if feature_D.shape != (dim,) or not np.isfinite(feature_D).all():
        raise ValueError(f"a feature is finite, of shape ({dim},); got shape {feature_D.shape}")


def _check_length(length: int) -> None:
    if length < 1:
        raise UsageError(f"a window holds at least 1 frame; got {length}")
