"""The actor that assembles shards while the stream goes on."""

from pipelines.assemble import Assembler
from pipelines.work import Work
from unmask.errors import StorageError
from unmask.products import Products

__all__ = ["AssemblyActor"]


class AssemblyActor:
    """Assembles shards; where videos are scored, it holds the heads of the model.

    Args:
        work: The run.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        judge = None
        if work.job.score is not None:
            from pipelines.judge import Judge  # only then is PyTorch needed here

            judge = Judge(work.job.score)
        self._assembler = Assembler(
            work.store,
            work.job,
            dims=[plan.dim for plan in work.plans],
            keys=work.keys,
            config=work.config,
            detector=work.detector,
            judge=judge,
        )

    def assemble(self, shard: int) -> list[tuple[str, str | None]] | str:
        """Status and reason of the shard's videos; or why the run cannot go on."""
        if shard in Products(self._work.store).shards():
            # An actor died after its work and before its answer.
            rows = Products(self._work.store).videos(shard).select(["status", "reason"]).to_pylist()
            return [(row["status"], row["reason"]) for row in rows]
        try:
            return self._assembler.assemble(shard, self._work.videos(shard))
        except StorageError as error:
            return error.message
