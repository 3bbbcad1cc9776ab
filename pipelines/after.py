"""Masks of pairs and re-encoded copies, made on the cluster of a run whose shards are whole. Nothing is made twice.

    masks/00000.json        what the masks of a shard's fakes follow; and when all are made, how many there are

Where one of a pair was preprocessed again, the next run that is asked for masks makes those of the shard again.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from pipelines.copies import compress
from pipelines.decode import local_copy
from pipelines.failures import own_error
from pipelines.masks import MaskCount, Originals, followed, remove_masks, write_masks
from pipelines.work import Work
from unmask.errors import MediaError, Reason, StorageError
from unmask.manifest import Video
from unmask.products import Products, shard_name
from unmask.storage import Store

__all__ = ["COPIES", "make_copies", "make_masks", "masks_of", "unmade_masks"]

COPIES = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("crf", pa.int8(), nullable=False),
        pa.field("file", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("lost", pa.int32()),
        pa.field("corrupt", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field("audio", pa.string()),
        pa.field("notes", pa.list_(pa.string())),
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
    ]
)
"""The columns of `copies/`: one row a video and quality."""

_RETRIES = 3


def _each(
    function: Any, arguments: Iterable[tuple[Any, ...]], tick: Callable[[], None], *, at_once: int
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Call a remote function on each, a few at a time; what it gave, or the error that it died of."""
    running: dict[Any, tuple[Any, ...]] = {}
    waiting = iter(arguments)
    while True:
        while len(running) < at_once and (given := next(waiting, None)) is not None:
            running[function.remote(*given)] = given
        if not running:
            return
        ready, _ = ray.wait(list(running), timeout=0.5)
        for ref in ready:
            given = running.pop(ref)
            try:
                yield given, ray.get(ref)
            except RayError as error:
                if (own := own_error(error)) is not None:
                    raise own from error
                yield given, error
        tick()


def _at_once() -> int:
    cpus: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(int(cpus.get("CPU", 1)) * 2, 2)


def make_masks(work: Work, *, say: Callable[[str], None], tick: Callable[[], None]) -> None:
    """Write the difference masks of all fakes whose original is among the videos.

    Args:
        work: A run whose shards are whole.
        say: Tells a person something.
        tick: Time passes.

    Raises:
        StorageError: The output cannot be read or written.
    """
    originals = Originals.of(Products(work.store))
    shards, there = unmade_masks(work.store, originals), ray.put(originals)
    remote = ray.remote(masks_of).options(num_cpus=1, max_retries=_RETRIES)
    for (_, shard, _), count in _each(remote, ((work.store, s, there) for s in shards), tick, at_once=_at_once()):
        if isinstance(count, RayError):
            raise StorageError(f"The masks of shard {shard:05d} killed their process each time ({count}).")
    total = MaskCount()
    for shard in range(len(work.shards)):
        total += MaskCount(**_mask_record(work.store, shard)["count"])
    unpaired = ", ".join(f"{n:,} {why}" for why, n in total.unpaired.items())
    say(f"masks: {total.written + total.kept:,}" + (f"; without one: {unpaired}" if unpaired else ""))


def unmade_masks(store: Store, originals: Originals) -> list[int]:
    """The shards whose masks are not all there, or are of other faces than are there now.

    Raises:
        StorageError: Something cannot be read.
    """
    return [shard for shard in sorted(originals.faces) if not _are_current(store, shard, originals)]


def _are_current(store: Store, shard: int, originals: Originals) -> bool:
    record = _mask_record(store, shard)
    return "count" in record and record.get("of") == followed(store, shard, originals)


def _mask_record(store: Store, shard: int) -> dict[str, Any]:
    """`of`: what the masks follow; `count`: as `MaskCount`, once they are made. Empty where none were begun."""
    name = _mask_file(shard)
    try:
        record = json.loads(store.read(name)) if store.exists(name) else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _mask_file(shard: int) -> str:
    return f"masks/{shard:05d}.json"


def masks_of(store: Store, shard: int, originals: Originals) -> MaskCount:
    """Make the masks of a shard, and the record of them. Runs in a worker.

    Those of an earlier run that was killed are kept; those of other faces go first, and the record says of which faces
    the new ones are before any is made.

    Raises:
        StorageError: As `write_masks`.
    """
    import cv2

    cv2.setNumThreads(1)
    of = followed(store, shard, originals)
    if _mask_record(store, shard).get("of") != of:
        remove_masks(store, shard)
        store.write(_mask_file(shard), json.dumps({"of": of}).encode())
    count = write_masks(store, shard, originals)
    plain = {**asdict(count), "unpaired": {str(k): v for k, v in count.unpaired.items()}}
    store.write(_mask_file(shard), json.dumps({"of": of, "count": plain}).encode())
    return count


def make_copies(work: Work, crfs: tuple[int, ...], *, tick: Callable[[], None]) -> int:
    """Re-encode all videos that could be decoded.

    Args:
        work: A run whose shards are whole.
        crfs: Qualities.
        tick: Time passes.

    Returns:
        How many copies could not be made; `copies/` says why.

    Raises:
        StorageError: The output cannot be read or written.
    """
    remote = ray.remote(_copy_of).options(num_cpus=1, max_retries=_RETRIES)
    failed = 0
    for shard in range(len(work.shards)):
        name = shard_name("copies", shard)
        rows = work.store.read_table(name).to_pylist() if work.store.exists(name) else []
        made = {(row["video"], row["crf"]) for row in rows}
        statuses = work.store.read_table(shard_name("videos", shard), ["video", "status"]).to_pylist()
        usable = {row["video"] for row in statuses if row["status"] in {"done", "empty"}}
        wanted = [
            (work.store, video, crf)
            for video in work.videos(shard)
            for crf in crfs
            if video.video in usable and (video.video, crf) not in made
        ]
        for (_, video, crf), row in _each(remote, wanted, tick, at_once=_at_once()):
            died = isinstance(row, RayError)
            rows.append(_lost_copy(video, crf, Reason.WORKER_LOST, "Re-encoding killed its process.") if died else row)
        if wanted:
            order = {video.video: n for n, video in enumerate(work.videos(shard))}
            rows.sort(key=lambda row: (order[row["video"]], row["crf"]))
            work.store.write_table(name, pa.Table.from_pylist(rows, COPIES))
        failed += sum(row.get("reason") is not None for row in rows if row["crf"] in crfs)
    return failed


def _lost_copy(video: Video, crf: int, reason: Reason, message: str) -> dict[str, Any]:
    return {"video": video.video, "crf": crf, "reason": str(reason), "message": message}


def _copy_of(store: Store, video: Video, crf: int) -> dict[str, Any]:
    """Runs in a worker: a copy of one video at one quality; a row of `COPIES`."""
    name = f"copies/{crf}/{video.video}.mp4"
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unmask-")))
        try:
            path = stack.enter_context(local_copy(video))
            with store.writing(name, scratch) as target:
                info = compress(path, target, crf)
        except MediaError as error:
            return _lost_copy(video, crf, error.reason, error.message)
    return {
        "video": video.video,
        "crf": crf,
        "file": name,
        **asdict(replace(info, notes=())),
        "notes": list(info.notes),
    }
