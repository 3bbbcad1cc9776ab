"""From a video to the faces in it: decode ahead in a thread, detect, join over time.

Frames that lie close together are followed from face to face; frames that lie far apart are each searched.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from unmask.detection import FaceDetector
from unmask.errors import Reason
from unmask.follow import Follower
from unmask.plan import Sampling, is_dense
from unmask.prefetch import prefetched
from unmask.quality import measured
from unmask.records import Faces, Frame
from unmask.tracks import TrackedFrame, Tracker, reason_not_to_look
from unmask.video import Missing, VideoReader
from unmask.workers import Workers

__all__ = ["Seen", "Stopwatch", "watch"]

# What may wait, decoded: ten frames of 1080p. One frame may always wait, however large.
_AHEAD_BYTES = 64 * 1024**2
# Frames searched together: enough to fill a GPU, little enough to keep memory low.
_BATCH_BYTES, _BATCH_FRAMES = 24 * 1024**2, 32


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent, by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, since: float) -> float:
        """Book the time since a reading of `time.perf_counter`, and give a new one."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


@dataclass(frozen=True, slots=True, eq=False)
class Seen(TrackedFrame):
    """One frame that was asked for, with its picture.

    Args:
        frame: The picture; None where there is none to look at (damaged or missing).
    """

    frame: Frame | None


def watch(
    reader: VideoReader, sampling: Sampling, detector: FaceDetector, workers: Workers, stopwatch: Stopwatch
) -> Generator[Seen, None, None]:
    """Find and join the faces of the frames that are wanted.

    Damaged frames are not looked at: what the damage did to a face would be taken for a manipulation.

    Args:
        reader: An open video.
        sampling: Which frames.
        detector: The face detector.
        workers: Search several frames at once.
        stopwatch: Gets the stages `decode` (which runs beside the others) and `detect`.

    Yields:
        One answer for every frame that was asked for, in the order of presentation.
    """
    times_s = reader.times_s(sampling)
    follower = Follower(detector) if is_dense(times_s) else None
    tracker = Tracker()
    # Closing it ends the thread before the reader is closed under it.
    with closing(prefetched(_decoded(reader, sampling, stopwatch), cost=_bytes, limit=_AHEAD_BYTES)) as ahead:
        for batch in _batches(ahead, 1 if follower else _BATCH_FRAMES):
            started = time.perf_counter()
            found = _detect(batch, detector, workers, follower)
            stopwatch.add("detect", started)
            cut = follower is not None and follower.cut
            yield from [_seen(item, faces, tracker, cut=cut) for item, faces in zip(batch, found, strict=True)]


def _decoded(reader: VideoReader, sampling: Sampling, stopwatch: Stopwatch) -> Iterator[Frame | Missing]:
    started = time.perf_counter()
    for item in reader.frames(sampling):
        stopwatch.add("decode", started)
        yield item
        started = time.perf_counter()
    stopwatch.add("decode", started)


def _bytes(item: Frame | Missing) -> int:
    return item.image_HWC.nbytes if isinstance(item, Frame) else 0


def _batches(items: Iterator[Frame | Missing], most: int) -> Iterator[list[Frame | Missing]]:
    batch: list[Frame | Missing] = []
    for item in items:
        if batch and (len(batch) == most or sum(map(_bytes, batch)) + _bytes(item) > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _reason_not_to_look(item: Frame | Missing) -> Reason | None:
    if isinstance(item, Missing):
        return item.reason
    height, width, _ = item.image_HWC.shape
    return reason_not_to_look(height, width, is_corrupt=item.is_corrupt)


def _detect(
    batch: list[Frame | Missing], detector: FaceDetector, workers: Workers, follower: Follower | None
) -> list[Faces]:
    frames = [item for item in batch if isinstance(item, Frame) and _reason_not_to_look(item) is None]
    if follower is not None:
        found = iter([follower(frame.image_HWC, frame.pts_s) for frame in frames])
    else:
        found = iter(workers.map(detector.search, [frame.image_HWC for frame in frames]))
    return [next(found) if _reason_not_to_look(item) is None else Faces.none() for item in batch]


def _seen(item: Frame | Missing, faces: Faces, tracker: Tracker, *, cut: bool) -> Seen:
    reason = _reason_not_to_look(item)
    frame = item if isinstance(item, Frame) and reason is None else None
    if frame is not None:
        faces = measured(frame.image_HWC, faces)
    tracked = tracker.track(item.pts_s, item.index, reason or faces, cut=cut)
    return Seen(tracked.pts_s, tracked.index, tracked.faces, tracked.sightings, tracked.reason, frame)
