"""The rolling window against recomputing the clip: `python -m benchmarks.window`.

Both give mean and standard deviation of the features of the last T = 16 frames, for every frame of a track. The peer
does what the DFGC-VRA system does for a clip, backbone and all, once for each window. Ours passes each frame through
the backbone once. One CPU thread, random weights, CPU time, medians of interleaved rounds.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.models import ForgeryModel, ModelConfig, build
from unmask.window import RollingWindow, mean_std, rolling_mean_std

__all__ = ["main"]

_BACKBONE, _SIDE_PX, _WINDOW = "mobilenetv3_small_100", 224, 16
# The peer's windows are all alike: a few of them tell its cost a window.
_FRAMES, _PEER_WINDOWS, _ROUNDS = 48, 4, 7
_TOLERANCE = 1e-5


def _interleaved_s(jobs: Sequence[Callable[[], object]], rounds: int = _ROUNDS) -> list[float]:
    """Median CPU seconds of each job; the jobs take turns, so that a busy machine harms all alike."""
    times: list[list[float]] = [[] for _ in jobs]
    for job in jobs:
        job()
    for _ in range(rounds):
        for job, its_times in zip(jobs, times, strict=True):
            start = time.process_time()
            job()
            its_times.append(time.process_time() - start)
    return [statistics.median(t) for t in times]


def _recomputed(model: ForgeryModel, crops_L3HW: Tensor, ends: Sequence[int]) -> Tensor:
    """The peer: the windows that end at these frames, each from its crops."""
    windows = []
    for end in ends:
        features_BTD = model.features(crops_L3HW[max(0, end - _WINDOW + 1) : end + 1])[None]
        windows.append(mean_std(features_BTD, torch.ones(features_BTD.shape[:2], dtype=torch.bool)))
    return torch.cat(windows)


def _whole_track(model: ForgeryModel, crops_L3HW: Tensor) -> Tensor:
    """Ours, for a file: the same batches of 16 as the peer's."""
    features_LD = torch.cat([model.features(batch) for batch in torch.split(crops_L3HW, _WINDOW)])
    return rolling_mean_std(features_LD, _WINDOW)[0]


def _live(model: ForgeryModel, crops_L3HW: Tensor) -> Tensor:
    """Ours, for a stream: frame by frame, as they come."""
    window, pushed = RollingWindow(_WINDOW, model.dim), []
    for i, crop_3HW in enumerate(crops_L3HW):
        pushed.append(window.push(model.features(crop_3HW[None])[0].numpy(), i / 25).statistics_S)
    return torch.from_numpy(np.stack(pushed))


def _settle(model: ForgeryModel, crops_L3HW: Tensor) -> None:
    """Fit the batch statistics of random weights to the crops: without that, all features are next to 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()
    model.features(crops_L3HW)
    model.eval()


def _compare_with_backbone() -> None:
    model = build(ModelConfig(backbone=_BACKBONE, head="temporal"))
    crops_L3HW = torch.randn(_FRAMES, 3, _SIDE_PX, _SIDE_PX, generator=torch.Generator().manual_seed(0))
    _settle(model, crops_L3HW)
    expected_LS = _recomputed(model, crops_L3HW, range(_FRAMES))
    full = range(_FRAMES - _PEER_WINDOWS, _FRAMES)
    jobs = (
        lambda: _recomputed(model, crops_L3HW, full),
        lambda: _whole_track(model, crops_L3HW),
        lambda: _live(model, crops_L3HW),
    )
    peer_s, track_s, live_s = _interleaved_s(jobs)
    peer_s, track_s, live_s = peer_s / _PEER_WINDOWS, track_s / _FRAMES, live_s / _FRAMES
    print(f"A window of {_WINDOW} frames at every frame, {_BACKBONE}, {_SIDE_PX} px, CPU ms a window")
    print(f"(statistics up to {float(expected_LS.abs().max()):.1f}):")
    print(f"  recomputing the clip                      {peer_s * 1e3:8.2f}")
    for name, ours_s, ours_LS in (
        ("whole track, batches of 16", track_s, _whole_track(model, crops_L3HW)),
        ("live, frame by frame", live_s, _live(model, crops_L3HW)),
    ):
        difference = float((ours_LS - expected_LS).abs().max())
        _check(difference)
        print(f"  {name:40}  {ours_s * 1e3:8.2f}   ratio {peer_s / ours_s:5.1f}   difference {difference:.1e}")


def _numpy_each(features_LD: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """The arithmetic's peer: NumPy's mean and std of the stored frames, for each full window."""
    clips = [features_LD[end - length : end] for end in range(length, len(features_LD) + 1)]
    return np.stack([np.concatenate([clip.mean(0), clip.std(0, ddof=1)]) for clip in clips])


def _pushed_each(features_LD: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    window = RollingWindow(length, features_LD.shape[1])
    pushed = [window.push(feature_D, i / 25).statistics_S for i, feature_D in enumerate(features_LD)]
    return np.stack(pushed[length - 1 :])


def _compare_arithmetic(length: int, dim: int = 1024) -> None:
    features_LD = np.random.default_rng(0).normal(size=(length + 255, dim)).astype(np.float32)
    peer_s, ours_s = _interleaved_s(
        [lambda: _numpy_each(features_LD, length), lambda: _pushed_each(features_LD, length)]
    )
    # Ours also pays for the frames before the first full window.
    peer_s, ours_s = peer_s / 256, ours_s / len(features_LD)
    difference = float(np.abs(_numpy_each(features_LD, length) - _pushed_each(features_LD, length)).max())
    _check(difference)
    print(
        f"  T = {length:3}: NumPy {peer_s * 1e6:7.0f}, ours {ours_s * 1e6:5.0f}   ratio {peer_s / ours_s:5.1f}"
        f"   difference {difference:.1e}"
    )


def _check(difference: float) -> None:
    if not difference <= _TOLERANCE:
        raise SystemExit(f"the windows differ by {difference}, more than {_TOLERANCE}")


def main() -> None:
    """Print the comparison."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        _compare_with_backbone()
    print("The arithmetic alone, from stored features (D = 1024), CPU microseconds a window:")
    for length in (16, 64, 256):
        _compare_arithmetic(length)


if __name__ == "__main__":
    main()
