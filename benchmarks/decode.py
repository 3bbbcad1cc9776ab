"""Decoding 32 frames of a clip, in CPU seconds, against the three usual ways; every frame is compared bit by bit.

Run `python -m benchmarks.decode [FOLDER] [--rounds N]`; the clips are those under FOLDER, `../shared/videos` by
default. All contenders get one thread, the same 32 evenly spread frames, and hand over RGB arrays. They take turns in
each round, and the median of the rounds counts, since the machine is shared.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from unmask.plan import Sampling
from unmask.records import Frame
from unmask.video import VideoReader

__all__ = ["main"]

FRAMES = 32
Image = NDArray[np.uint8]
Contender = Callable[[Path], Iterator[tuple[int, Image]]]


def unmask_reader(path: Path) -> Iterator[tuple[int, Image]]:
    """Ours, from opening the file to closing it."""
    with VideoReader(path) as reader:
        for frame in reader.frames(Sampling(frames=FRAMES)):
            assert isinstance(frame, Frame), f"{path}: {frame}"
            yield frame.index, frame.image_HWC


def _targets(frames: int) -> list[int]:
    return [(2 * i + 1) * frames // (2 * min(FRAMES, frames)) for i in range(min(FRAMES, frames))]


def pyav_every_frame(path: Path) -> Iterator[tuple[int, Image]]:
    """Every frame decoded and converted."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            yield index, np.asarray(frame.reformat(format="rgb24", threads=1).to_ndarray(), np.uint8)


def opencv_grab(path: Path) -> Iterator[tuple[int, Image]]:
    """Every frame grabbed, the targets retrieved; OpenCV hands over BGR."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = set(_targets(int(capture.get(cv2.CAP_PROP_FRAME_COUNT))))
    index = 0
    while capture.grab():
        if index in wanted:
            yield index, np.asarray(capture.retrieve()[1], np.uint8)
        index += 1
    capture.release()


def pyav_seeks(path: Path) -> Iterator[tuple[int, Image]]:
    """A seek a target, then decoding up to it."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        pts = sorted(p.pts for p in container.demux(stream) if p.size and p.pts is not None)
        for index in _targets(len(pts)):
            container.seek(pts[index], stream=stream)
            frame = next(f for f in container.decode(stream) if f.pts is not None and f.pts >= pts[index])
            yield index, np.asarray(frame.reformat(format="rgb24", threads=1).to_ndarray(), np.uint8)


SLOWEST = "PyAV, a seek a frame"

CONTENDERS: dict[str, Contender] = {
    "unmask": unmask_reader,
    "PyAV, every frame to RGB": pyav_every_frame,
    "OpenCV, grab and retrieve": opencv_grab,
    SLOWEST: pyav_seeks,
}


def _cpu_s(contender: Contender, path: Path) -> float:
    start_s = time.process_time()
    for _ in contender(path):
        pass
    return time.process_time() - start_s


def _differing(path: Path) -> tuple[int, int]:
    """How many of our frames differ from those of a full decode, and how many there are."""
    ours = {index: hash(image.tobytes()) for index, image in unmask_reader(path)}
    full = {index: hash(image.tobytes()) for index, image in pyav_every_frame(path) if index in ours}
    return sum(ours[index] != full.get(index) for index in ours), len(ours)


def main(arguments: list[str] | None = None) -> int:
    """Print a line a clip and the total; 1 where a frame differs from a full decode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[2] / "shared" / "videos")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    paths = sorted(options.folder.rglob("*.mp4"))
    if not paths:
        print(f"{options.folder} holds no .mp4 file; name a folder with clips", file=sys.stderr)
        return 2
    cv2.setNumThreads(1)
    names = list(CONTENDERS)
    totals_s = dict.fromkeys(names, 0.0)
    differing = compared = 0
    print("CPU seconds: " + " | ".join(names))
    for path in paths:
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(options.rounds):
            # The slowest by far takes one turn: noise cannot blur a factor of ten.
            for name in [name for name in names if turn == 0 or name != SLOWEST]:
                seconds[name].append(_cpu_s(CONTENDERS[name], path))
        medians_s = {name: statistics.median(values) for name, values in seconds.items()}
        wrong, frames = _differing(path)
        differing, compared = differing + wrong, compared + frames
        for name in names:
            totals_s[name] += medians_s[name]
        print(f"{path.name:20s} {_line(medians_s)}  {frames - wrong}/{frames} frames identical", flush=True)
    print(f"{'total':20s} {_line(totals_s)}  {compared - differing}/{compared} frames identical")
    return 1 if differing else 0


def _line(seconds: dict[str, float]) -> str:
    ours_s = seconds["unmask"]
    return " ".join(f"{value:7.3f} ({value / ours_s:4.2f}x)" for value in seconds.values())


if __name__ == "__main__":
    sys.exit(main())
