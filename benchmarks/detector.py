"""Search mode against facenet-pytorch's `MTCNN(keep_all=True).detect(..., landmarks=True)` on the same pixels.

    python -m benchmarks.detector [--videos DIR] [--frames N] [--device cuda --batch 32]

Both get the same scaled copy. On a CPU: one thread, CPU seconds, the two in turn on each frame, the median of the
ratios. On a GPU: wall time of batches of frames of one size, after a warm-up.
"""

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from unmask.mtcnn import MTCNN
from unmask.records import Faces

__all__ = ["agreement", "main", "peer_faces", "read_frames"]


def read_frames(path: Path, limit: int | None = None, step: int = 1) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Every `step`-th frame of a clip, at most `limit`, as RGB with its presentation time in seconds."""
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if limit is not None and index >= limit * step:
                return
            if index % step == 0:
                yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False), float(frame.time or 0.0)


def peer_faces(found: tuple[Any, Any, Any]) -> Faces:
    """facenet-pytorch's answer for one frame, most probable first."""
    boxes, probabilities, landmarks = found
    if boxes is None:
        return Faces.none()
    order = np.argsort(-probabilities.astype(np.float32), kind="stable")
    parts = (np.asarray(part, np.float32)[order] for part in (boxes, probabilities, landmarks))
    return Faces(*parts)


def agreement(ours: Faces, theirs: Faces) -> tuple[float, float, float] | None:
    """Lowest IoU, largest landmark distance in px, largest difference of probability; None if counts differ."""
    if len(ours) != len(theirs):
        return None
    worst = (1.0, 0.0, 0.0)
    for i in range(len(theirs)):
        overlaps = [_iou(box, theirs.boxes_N4[i]) for box in ours.boxes_N4]
        j = int(np.argmax(overlaps))
        apart = float(np.abs(ours.landmarks_NK2[j] - theirs.landmarks_NK2[i]).max())
        unsure = float(abs(ours.probabilities_N[j] - theirs.probabilities_N[i]))
        worst = (min(worst[0], overlaps[j]), max(worst[1], apart), max(worst[2], unsure))
    return worst


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    inner = float(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod())
    return inner / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - inner)


def _one_by_one(clips: Sequence[Path], frames: int, scale: float, ours: MTCNN, peer: Any) -> None:
    ratios, spent, verdicts = [], [0.0, 0.0], []
    for path in clips:
        for image, _ in read_frames(path, frames, step=30):
            copy = ours.scaled_copy(image, scale=scale).numpy()
            peer.detect(copy, landmarks=True) if not spent[0] else None
            ours.search([copy], scale=1.0) if not spent[1] else None
            start = time.process_time()
            theirs = peer.detect(copy, landmarks=True)
            middle = time.process_time()
            mine = ours.search([copy], scale=1.0)[0]
            stop = time.process_time()
            spent = [spent[0] + middle - start, spent[1] + stop - middle]
            ratios.append((middle - start) / (stop - middle))
            verdicts.append(agreement(mine, peer_faces(theirs)))
    count = len(ratios)
    print(f"scale {scale:.2f}: {count} frames, facenet-pytorch {spent[0] / count * 1e3:.1f} ms, unmask ", end="")
    print(f"{spent[1] / count * 1e3:.1f} ms a frame; ratio {median(ratios):.2f} (median), goal >= 3")
    _print_agreement(verdicts)


def _batches(clips: Sequence[Path], batch: int, scale: float, ours: MTCNN, peer: Any) -> None:
    spent, verdicts, rounds = [0.0, 0.0], [], 0
    for path in clips:
        images = [image for image, _ in read_frames(path, batch, step=2)]
        copies = torch.stack([ours.scaled_copy(image, scale=scale) for image in images])
        for _ in range(2):
            times = []
            for run in (lambda: peer.detect(copies, landmarks=True), lambda: ours.search(copies, scale=1.0)):  # noqa: B023
                torch.cuda.synchronize()
                start = time.perf_counter()
                answer = run()
                torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
                if len(times) == 1:
                    theirs = [peer_faces(one) for one in zip(*answer, strict=True)]
        spent, rounds = [spent[0] + times[0], spent[1] + times[1]], rounds + len(images)
        verdicts += [agreement(a, b) for a, b in zip(answer, theirs, strict=True)]
    print(f"scale {scale:.2f}: batches of {batch}, facenet-pytorch {spent[0] / rounds * 1e3:.2f} ms, unmask ", end="")
    print(f"{spent[1] / rounds * 1e3:.2f} ms a frame; ratio {spent[0] / spent[1]:.1f}, goal >= 10")
    _print_agreement(verdicts)


def _print_agreement(verdicts: list[tuple[float, float, float] | None]) -> None:
    same = [verdict for verdict in verdicts if verdict is not None]
    print(f"  same number of faces on {len(same)} of {len(verdicts)} frames; there, lowest IoU ", end="")
    print(
        f"{min(v[0] for v in same):.5f}, landmarks within {max(v[1] for v in same):.4f} px, probability within ", end=""
    )
    print(f"{max(v[2] for v in same):.1e}")


def main() -> None:
    """Read the options, run both scales, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=Path("../shared/videos"))
    parser.add_argument("--frames", type=int, default=5, help="frames a clip, 30 apart (CPU)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32, help="frames a batch (GPU)")
    parser.add_argument("--half", action=argparse.BooleanOptionalAction, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from facenet_pytorch import MTCNN as Peer  # noqa: N811
    ours, peer = MTCNN(device=options.device, half=options.half), Peer(keep_all=True, device=options.device)
    clips = [path for path in sorted(options.videos.rglob("*.mp4")) if _is_1080p(path)]
    if not clips:
        raise SystemExit(f"no 1080p clip under {options.videos}: name a folder with --videos")
    for scale in (1 / 3, 1.0):
        if ours.device.type == "cpu":
            _one_by_one(clips, options.frames, scale, ours, peer)
        else:
            _batches(clips, options.batch, scale, ours, peer)


def _is_1080p(path: Path) -> bool:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {stream.width, stream.height} == {1920, 1080}


if __name__ == "__main__":
    main()
