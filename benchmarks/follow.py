"""Follow mode on every frame of the clips, against facenet-pytorch on every frame and against our own search mode.

    python -m benchmarks.follow [--videos DIR] [--frames N] [--peer-every K]

One CPU thread, CPU seconds a frame, decoding excluded on both sides. facenet-pytorch is timed on every K-th frame only,
between the frames that we follow; it gets the copy that search mode looks at, whose making counts on both sides.
Search mode runs on every frame to say what there is to be followed; it is not timed.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.detector import read_frames
from unmask.follow import Follower
from unmask.mtcnn import MTCNN
from unmask.records import Faces

__all__ = ["main"]

_SURE = 0.9
# A face counts as followed if a followed box overlaps it by more than this.
_MET = 0.3


class _Clip(NamedTuple):
    frames: int
    ratio: float
    ours_ms: float
    peer_ms: float
    faces: list[tuple[float, float]]
    searched: int
    lost_s: float
    lost_sure_s: float


def _measure(path: Path, limit: int | None, peer_every: int, detector: MTCNN, peer: Any) -> _Clip:
    follower = Follower(detector)
    ours_s, peer_s, searched = [], [], 0
    faces: list[tuple[float, float]] = []
    any_face, sure_face = _Missing(0.0), _Missing(_SURE)
    for index, (image, pts_s) in enumerate(read_frames(path, limit)):
        start = time.process_time()
        followed = follower(image, pts_s)
        ours_s.append(time.process_time() - start)
        searched += follower.searched
        if index % peer_every == 0:
            start = time.process_time()
            copy = detector.scaled_copy(image).numpy()
            peer.detect(copy, landmarks=True)
            peer_s.append(time.process_time() - start)
        there = detector.search([image])[0]
        overlaps = _overlaps(there, followed)
        faces += zip(there.probabilities_N.tolist(), overlaps.tolist(), strict=True)
        any_face.update(there, overlaps, pts_s)
        sure_face.update(there, overlaps, pts_s)
    ours, theirs = float(np.mean(ours_s)), float(np.mean(peer_s))
    gaps = (any_face.longest_s, sure_face.longest_s)
    return _Clip(len(ours_s), theirs / ours, ours * 1e3, theirs * 1e3, faces, searched, *gaps)


class _Missing:
    """How long a face that search mode finds in each frame goes without an overlapping followed one, at the longest."""

    def __init__(self, above: float) -> None:
        self._above = above
        self._open: list[tuple[NDArray[np.float32], float]] = []
        self.longest_s = 0.0

    def update(self, there: Faces, overlaps: NDArray[np.float32], pts_s: float) -> None:
        """Carry each uncovered face's beginning on from the frame before, or begin it now."""
        still = []
        for box, probability, best in zip(there.boxes_N4, there.probabilities_N, overlaps, strict=True):
            if best > _MET or probability < self._above:
                continue
            since = min([begin for old, begin in self._open if _iou(old, box) > _MET], default=pts_s)
            self.longest_s = max(self.longest_s, pts_s - since)
            still.append((box, since))
        self._open = still


def _overlaps(there: Faces, followed: Faces) -> NDArray[np.float32]:
    """For each face found by search, the best IoU with a followed one."""
    best = [max((_iou(box, other) for other in followed.boxes_N4), default=0.0) for box in there.boxes_N4]
    return np.array(best, np.float32)


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    inner = float(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod())
    return inner / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - inner)


def _overlap_text(faces: list[tuple[float, float]]) -> str:
    """From (probability, IoU) of all faces that search finds: where both modes agree, and what is missed."""
    sure, unsure = ([iou for p, iou in faces if (p >= _SURE) == wanted] for wanted in (True, False))
    met = [iou for _, iou in faces if iou > _MET]
    return (
        f"IoU {_mean(met):.3f} where both have the face, {_mean(sure):.3f} over sure faces with misses as 0; "
        f"missed {_missed(sure)} sure (>= {_SURE}) and {_missed(unsure)} unsure"
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _missed(ious: list[float]) -> str:
    return f"{_mean([float(iou <= _MET) for iou in ious]):.1%} of {len(ious)}" if ious else "none of 0"


def main() -> None:
    """Read the options, measure each clip, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=Path("../shared/videos"))
    parser.add_argument("--frames", type=int, default=None, help="at most so many frames a clip (default: all)")
    parser.add_argument("--peer-every", type=int, default=20, help="time facenet-pytorch on every K-th frame")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from facenet_pytorch import MTCNN as Peer  # noqa: N811
    detector, peer = MTCNN(), Peer(keep_all=True)
    clips = sorted(options.videos.rglob("*.mp4"))
    if not clips:
        raise SystemExit(f"no clip under {options.videos}: name a folder with --videos")
    warm, _ = next(read_frames(clips[0], 1))
    detector.search([warm])
    peer.detect(detector.scaled_copy(warm).numpy(), landmarks=True)
    results = []
    for path in clips:
        clip = _measure(path, options.frames, options.peer_every, detector, peer)
        results.append(clip)
        print(
            f"{path.stem:12s} {clip.frames:4d} frames, {clip.searched:3d} searched; "
            f"facenet-pytorch {clip.peer_ms:6.1f} ms, follow {clip.ours_ms:5.2f} ms, ratio {clip.ratio:5.1f}; "
            f"{_overlap_text(clip.faces)}; "
            f"longest miss {clip.lost_s:.2f} s (faces above {_SURE}: {clip.lost_sure_s:.2f} s)",
            flush=True,
        )
    frames = sum(clip.frames for clip in results)
    ratio = sum(c.peer_ms * c.frames for c in results) / sum(c.ours_ms * c.frames for c in results)
    overlap = _overlap_text([face for clip in results for face in clip.faces])
    print(f"all: {frames} frames, ratio {ratio:.1f} (goal >= 15), {overlap} (goal: IoU >= .90), ", end="")
    print(f"longest miss {max(c.lost_s for c in results):.2f} s (goal <= .5)")


if __name__ == "__main__":
    main()
