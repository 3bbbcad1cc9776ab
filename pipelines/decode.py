"""The decoding stage: shards in, frame batches out, as the decoder's planes. Runs in tasks; libav in a child of theirs.

Ray starts a task again whose worker died, and drops those of its outputs that it already had, by their number. So a
task must give as many parcels when it is run again as the first time, whatever was committed in between: in place of a
batch that this run committed comes a parcel that says so. What earlier runs committed is told at once, at the start.
"""

import errno
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.ledger import begin, end
from pipelines.pairs import GivenBoxes, SourceFaces
from pipelines.parcels import QUARANTINED, Outcome, Parcel, Part, to_row
from pipelines.supervisor import Batch, Decoder
from pipelines.units import Committed, committed, is_whole
from pipelines.work import Work
from unmask.errors import MediaError, Reason, StorageError, UnmaskError
from unmask.inputs import Source, content_id, fetched
from unmask.manifest import Video
from unmask.plan import Sampling, is_dense
from unmask.products import shard_name
from unmask.storage import Store
from unmask.video import Missing

__all__ = ["decode_shards", "local_copy"]

# Outcomes that travel together, and for how long the first may wait.
_MOST_NEWS, _SILENCE_S = 256, 20.0
# Videos in a row that cannot be fetched, before it is put down to their bucket.
_MOST_UNREACHABLE = 5

# One a worker process, for all of its tasks.
_decoders: dict[tuple[object, ...], Decoder] = {}


def decode_shards(table: pa.Table, *, work: Work, ledger: Any = None) -> Iterator[pa.Table]:
    """Decode all videos of the shards that a block names.

    Args:
        table: A column `shard`.
        work: The run.
        ledger: Counts beginnings, so that a video which kills this process is found out.

    Yields:
        Blocks of one parcel.
    """
    settings = (work.decode_timeout_s, work.max_batch_bytes, *sorted(work.fault.items()))
    if settings not in _decoders:
        _decoders[settings] = Decoder(
            timeout_s=work.decode_timeout_s, max_batch_bytes=work.max_batch_bytes, fault=work.fault
        )
    for shard in table["shard"].to_pylist():
        try:
            yield from _Shard(work, shard, _decoders[settings], ledger).parcels()
        except StorageError as error:
            yield to_row(Parcel(shard=shard, fatal=error.message))


class _Shard:
    """One shard on its way."""

    def __init__(self, work: Work, shard: int, decoder: Decoder, ledger: Any) -> None:
        self._work, self._shard, self._decoder, self._ledger = work, shard, decoder, ledger
        self._unreachable = 0
        self._told = time.monotonic()
        self._found: Committed = committed(work.store, shard)
        self._news: list[Outcome] = []
        self._sources = SourceFaces(work) if work.job.boxes_from_source else None

    def parcels(self) -> Iterator[pa.Table]:
        """What is still to be done, and what is known of the rest."""
        if self._work.store.exists(shard_name("videos", self._shard)):
            return  # assembled, while Ray thought that this task must be run again
        known, known_outcomes = self._found.before(self._work.run)
        ended = self._found.ended(self._work.run)
        if known or known_outcomes:
            yield to_row(Parcel(shard=self._shard, known=known, known_outcomes=known_outcomes))
        for position, video in enumerate(self._work.videos(self._shard)):
            if position in ended:
                continue
            again = self._again(position)
            if again is not None:
                yield from map(to_row, again)
            else:
                yield from self._video(position, video)
            # News that took long are told at once: a stream that stays silent is taken for stalled.
            if len(self._news) >= _MOST_NEWS or (self._news and time.monotonic() - self._told > _SILENCE_S):
                yield to_row(self._parcel())
        if self._news:
            yield to_row(self._parcel())

    def _again(self, position: int) -> list[Parcel] | None:
        """What this run has committed of a video of which nothing is left to do; None for any other."""
        parts = sorted(part for part in self._found.parts if part.video == position)
        has_outcome = position in self._found.outcomes
        if not has_outcome and not (parts and is_whole(parts)):
            return None
        if has_outcome:
            self._news.append(self._found.outcomes[position][1])
        return [self._known(part) for part in parts if self._found.parts[part][0] == self._work.run]

    def _known(self, part: Part) -> Parcel:
        parcel = self._parcel()
        parcel.known = (part,)
        return parcel

    def _parcel(self, part: Part | None = None) -> Parcel:
        """A parcel that takes the news along."""
        self._told = time.monotonic()
        news, self._news = self._news, []
        return Parcel(shard=self._shard, part=part, outcomes=tuple(news))

    def _video(self, position: int, video: Video) -> Iterator[pa.Table]:
        key = f"decode {self._shard} {position}"
        if not begin(self._ledger, key):
            why = f"{video.video} killed the process that decodes each time; re-encode it elsewhere or leave it out."
            self._end(position, "quarantined", Reason.WORKER_LOST, why)
            return
        try:
            with local_copy(video) as path:
                self._unreachable = 0
                yield from self._batches(position, video, path)
        except StorageError as error:
            missing = isinstance(error.__cause__, FileNotFoundError)
            self._unreachable = 0 if missing else self._unreachable + 1
            if self._unreachable >= _MOST_UNREACHABLE:
                raise  # not this file, but where all of them lie
            self._end(position, "failed", Reason.MISSING_FILE if missing else error.reason, error.message)
        except UnmaskError as error:
            status = "quarantined" if error.reason in QUARANTINED else "failed"
            self._end(position, status, error.reason, error.message)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageError(f"{tempfile.gettempdir()} is full; make room there, or set TMPDIR.") from error
            why = f"{video.video} cannot be read ({error.strerror or error}); check the file and its permissions."
            self._end(position, "failed", Reason.UNREADABLE_FILE, why)
        except Exception as error:
            ours = f"{video.video} could not be decoded: {type(error).__name__}: {' '.join(str(error).split())}"
            self._end(position, "failed", Reason.INTERNAL, ours)
        end(self._ledger, key)

    def _end(self, position: int, status: str, reason: Reason, message: str) -> None:
        attempts = self._decoder.attempts if status == "quarantined" else 1
        outcome = Outcome(video=position, status=status, reason=reason, message=message, attempts=attempts)
        self._news.append(outcome)

    def _batches(self, position: int, video: Video, path: Path) -> Iterator[pa.Table]:
        started = time.perf_counter()
        given = self._sources.of(video) if self._sources is not None else None
        sampling = Sampling(times_s=given.times_s) if given is not None else self._work.job.sampling
        opened = self._decoder.open(path, sampling)
        if given is not None:
            # Where the fake is shorter, or has fewer frames, several times show one frame or none.
            shown = _shown(opened.positions_T, given)
            if len(shown) < len(opened.positions_T):
                given = given.only(shown)
                opened = self._decoder.open(path, Sampling(times_s=given.times_s))
        name = content_id(path) if self._work.job.score is not None else ""
        cuts = opened.cuts
        parts = [Part(position, cut.unit, cut.units, cut.batch, cut.batches) for cut in cuts]
        if not parts:
            why = f"{video.video} shows no frame; check that it plays."
            self._end(position, "failed", Reason.NO_FRAMES, why)
            return
        done = {part: self._found.parts[part][0] for part in parts if part in self._found.parts}
        batches = self._decoder.batches(opened, skip={(part.unit, part.batch) for part in done})
        for part, cut in zip(parts, cuts, strict=True):
            if part in done:
                if done[part] == self._work.run:
                    yield to_row(self._known(part))
                continue
            batch = next(batches)
            assert batch.cut == cut
            parcel = self._parcel(part)
            parcel.video, parcel.info, parcel.content_id = video.video, opened.info, name
            parcel.attempts = 1 + self._decoder.faults
            parcel.follow = is_dense(opened.times_s_T)
            parcel.items = [item if isinstance(item, Missing) else item.header() for item in batch.items]
            if given is not None:
                parcel.boxes = _boxes(batch, given.boxes[cut.start : cut.stop])
            now = time.perf_counter()
            parcel.seconds["decode"] = now - started
            yield to_row(parcel, batch.buffer)
            started = time.perf_counter()


def _shown(positions_T: NDArray[np.int64], given: GivenBoxes) -> list[int]:
    """Of the times that show one frame the first with a box, or else the first; none of those that show no frame."""
    best: dict[int, int] = {}
    for n, position in enumerate(positions_T.tolist()):
        is_better = position not in best or (len(given.boxes[n]) and not len(given.boxes[best[position]]))
        if position >= 0 and is_better:
            best[position] = n
    return list(best.values())


def _boxes(batch: Batch, boxes: list[NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
    return {item.index: found for item, found in zip(batch.items, boxes, strict=True)}


@contextmanager
def local_copy(video: Video) -> Iterator[Path]:
    """The video as a local file; a copy is deleted at the end.

    Raises:
        MediaError: It cannot be fetched.
        StorageError: Its bucket cannot be read.
    """
    source = Source(video.uri)
    store = Store(video.uri)
    with ExitStack() as stack:
        if source.is_url or store.is_local:
            local = source if source.is_url else Source(str(store.local_path()))
            yield stack.enter_context(fetched(local))
        else:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unmask-")))
            path = store.fetch(scratch)
            try:
                yield path
            except MediaError as error:
                # Nobody knows the copy's name.
                raise MediaError(error.reason, error.message.replace(str(path), store.shown)) from None
