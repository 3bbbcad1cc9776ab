"""The stages that run in actors: detect, embed, commit; one after the other in processes of their own, or in one.

A stage never raises for what a video does: that becomes the outcome of the video.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.decode import decode_shards
from pipelines.ledger import begin, end
from pipelines.parcels import Outcome, Parcel, from_row, to_row
from pipelines.progress import Receipt
from pipelines.units import commit
from pipelines.work import Work
from unmask.errors import Reason, StorageError

if TYPE_CHECKING:
    from pipelines.embedders import Embedder

__all__ = ["FusedStage", "Stage"]

_NOT_LOOKED_AT = {Reason.DECODE_FAILED, Reason.MISSING_FRAME, Reason.CORRUPT_FRAME, Reason.FRAME_TOO_SMALL}


class Stage:
    """A part of the way of a parcel. Loads its networks once.

    Args:
        work: The run.
        ledger: Counts beginnings, so that a parcel which kills its process is found out.
        steps: Of `detect`, `embed` and `commit`, those that are done here.
    """

    def __init__(self, work: Work, ledger: Any, steps: tuple[str, ...]) -> None:
        # Here, since the driver knows this class and has no need of PyTorch.
        import torch

        from pipelines.detect import Detector
        from unmask.devices import select_device

        self._work, self._ledger, self._steps = work, ledger, steps
        device = select_device(work.device)
        if device.type == "cpu":
            torch.set_num_threads(1)  # there is a process for each core
        self._detector = Detector(work.job, work.plans, device) if "detect" in steps else None
        self._embedders: list[Embedder] = []
        if work.plans and "embed" in steps:
            from pipelines.embedders import load  # which takes timm's seconds

            self._embedders = [load(plan.options, device) for plan in work.plans]

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Take a block on its way, and give it on; or what was committed, where this is the last stage."""
        for parcel, pixels in from_row(table):
            yield to_row(self.process(parcel, pixels))

    def process(self, parcel: Parcel, pixels: memoryview) -> Parcel:
        """Do the steps for one parcel."""
        if parcel.fatal is not None:
            return parcel
        if parcel.part is not None:
            parcel = self._attempt(parcel, pixels)
        return self._committed(parcel) if "commit" in self._steps else parcel

    def _attempt(self, parcel: Parcel, pixels: memoryview) -> Parcel:
        assert parcel.part is not None
        key = f"{self._steps[0]} {parcel.shard} {parcel.part}"
        if not begin(self._ledger, key):
            why = f"{parcel.video} killed the process that looked for its faces each time; check memory and drivers."
            return _ended(parcel, "quarantined", Reason.WORKER_LOST, why)
        try:
            if self._detector is not None:
                self._detector.detect(parcel, pixels)
            for n, embedder in enumerate(self._embedders):
                _embed(parcel, n, embedder)
        except Exception as error:
            ours = f"{parcel.video} could not be processed: {type(error).__name__}: {' '.join(str(error).split())}"
            parcel = _ended(parcel, "failed", Reason.INTERNAL, ours)
        end(self._ledger, key)
        return parcel

    def _committed(self, parcel: Parcel) -> Parcel:
        """Commit a parcel, and give the receipt."""
        started = time.perf_counter()
        receipt = Parcel(
            shard=parcel.shard,
            part=parcel.part,
            known=parcel.known,
            outcomes=parcel.outcomes,
            known_outcomes=parcel.known_outcomes,
        )
        try:
            commit(self._work.store, self._work.run, parcel)
        except StorageError as error:
            return replace(receipt, part=None, outcomes=(), fatal=error.message)
        except Exception as error:
            if parcel.part is None:
                raise
            ours = f"{parcel.video} could not be stored: {type(error).__name__}: {' '.join(str(error).split())}"
            return self._committed(_ended(parcel, "failed", Reason.INTERNAL, ours))
        dropped: dict[str, int] = {}
        for frame in parcel.frames:
            if frame.reason in _NOT_LOOKED_AT:
                dropped[str(frame.reason)] = dropped.get(str(frame.reason), 0) + 1
        seconds = {**parcel.seconds, "commit": time.perf_counter() - started}
        receipt.receipt = Receipt(
            frames=len(parcel.frames), dropped=dropped, faces=len(parcel.faces), seconds=seconds if parcel.part else {}
        )
        return receipt


class FusedStage:
    """All stages in one actor: frames go from the decoder's memory to the detector and nowhere else."""

    def __init__(self, work: Work, ledger: Any) -> None:
        self._work, self._ledger, self._stage = work, ledger, Stage(work, ledger, ("detect", "embed", "commit"))

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Take shards; give what was committed of them."""
        for block in decode_shards(table, work=self._work, ledger=self._ledger):
            yield from self._stage(block)


def _embed(parcel: Parcel, n: int, embedder: "Embedder") -> None:
    started = time.perf_counter()
    for face, feature_D in zip(parcel.faces, embedder.features([f.inputs[n] for f in parcel.faces]), strict=True):
        face.features.append(feature_D)
    parcel.seconds["embed"] = parcel.seconds.get("embed", 0.0) + time.perf_counter() - started


def _ended(parcel: Parcel, status: str, reason: Reason, message: str) -> Parcel:
    """The video of this parcel gives nothing."""
    assert parcel.part is not None
    outcome = Outcome(video=parcel.part.video, status=status, reason=reason, message=message, attempts=parcel.attempts)
    return Parcel(
        shard=parcel.shard,
        known=parcel.known,
        outcomes=(*parcel.outcomes, outcome),
        known_outcomes=parcel.known_outcomes,
        seconds=parcel.seconds,
    )
