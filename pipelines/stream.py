"""The stream of a run, as a Ray Data graph, and the driver's loop that drains it.

    shards -> decode (tasks) -> detect (actors) -> embed (actors) -> receipts -> driver -> assembly (actors)

The driver holds numbers of shards and the account of those in work, whatever the size of the manifest. Facts about Ray
Data 2.60 that shape it: a worker that dies is replaced and its task started again, for ever, so poisoned work is
found out by the stages; stages of equal demands are fused, so their demands differ; a row is a block where the target
size of blocks is one byte, and only a task that streams block by block keeps the object store low.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from cluster.session import DECODES, Cluster
from pipelines.assembly import AssemblyActor
from pipelines.book import Book
from pipelines.config import Pools
from pipelines.decode import decode_shards
from pipelines.failures import own_error
from pipelines.ledger import start_ledger
from pipelines.parcels import Parcel, from_row
from pipelines.stage import FusedStage, Stage
from pipelines.work import Work
from unmask.errors import Reason, StorageError, UnmaskError, UsageError
from unmask.products import Products

__all__ = ["Events", "run_stream"]

# Of a node's resource that says where to decode: so little that it limits nothing.
_A_TOUCH = 0.001
# Blocks of a task that may wait for the next stage, where the object store has room for so many of each task.
_AHEAD, _ROOM = 2, 16
# Of the object store: what the stream may hold at once.
_STORE_SHARE = 0.2
_NO_PROGRESS_S = 7200.0
# An actor that assembles can keep up with so many CPUs; it works on two shards at once, and a few more may wait.
_CPUS_PER_ASSEMBLER, _ASSEMBLIES_EACH, _WAITING_EACH = 16, 2, 6
_ASSEMBLY_RETRIES = 20
# Streams without a shard finished, before the run is given up.
_PATIENCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What a run tells its driver."""

    receipt: Callable[[Parcel], None]
    """A parcel was committed."""
    video: Callable[[str, str | None], None]
    """A video's row was published, with status and reason."""
    shard: Callable[[], None]
    """A shard's products are whole."""
    tick: Callable[[], None]
    """Time passes."""


def run_stream(
    work: Work,
    pools: Pools,
    cluster: Cluster,
    events: Events,
    *,
    decode: Callable[..., Iterator[pa.Table]] = decode_shards,
) -> None:
    """Work on all shards that are not whole yet, until all are.

    Args:
        work: What is to be done.
        pools: With what means.
        cluster: What there is.
        events: Who is told.
        decode: The decoding stage.

    Raises:
        StorageError: The output cannot be written, or not be read back.
        UnmaskError: Shards stay incomplete whatever is done.
    """
    with _telling(), _Assembly(work, cluster, events) as assembly:
        for shards in work.shards.passes():
            fruitless = 0
            pending = _pending(work, shards)
            while pending:
                _drain(work, pools, cluster, events, decode, pending, assembly)
                before, pending = pending, _pending(work, shards)
                fruitless = fruitless + 1 if len(pending) == len(before) else 0
                if fruitless == _PATIENCE:
                    raise UnmaskError(
                        Reason.INTERNAL,
                        f"{len(pending)} shards of {work.store.shown} stay incomplete (the first is {pending[0]:05d}); "
                        "look at Ray's logs, and run again",
                    )


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """One sentence in place of what Ray raises: our own, where a process of ours raised one."""
    try:
        yield
    except (RayError, SystemException, ExecutionTimeoutError) as error:
        if (own := own_error(error)) is not None:
            raise own from error
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        told = f"The run broke off: {_last_line(cause)} Run it again to continue."
        raise UnmaskError(Reason.INTERNAL, told) from error


def _last_line(error: BaseException) -> str:
    """What a traceback within an error's text ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[-1][:300].rstrip('.')}."


def _pending(work: Work, shards: range) -> list[int]:
    whole = set(Products(work.store).shards())
    return [shard for shard in shards if shard not in whole]


def _drain(
    work: Work,
    pools: Pools,
    cluster: Cluster,
    events: Events,
    decode: Callable[..., Iterator[pa.Table]],
    pending: Sequence[int],
    assembly: "_Assembly",
) -> None:
    """One stream over these shards."""
    book = Book(work.shards)
    ledger = start_ledger()
    # Closed before anything else: else the stages go on, and Ray Data, finalised after Ray's end, starts a new one.
    with contextlib.closing(_graph(work, pools, cluster, decode, ledger, pending)) as rows:
        for table in rows:
            for parcel, _ in from_row(table):
                if parcel.fatal is not None:
                    raise StorageError(parcel.fatal)
                events.receipt(parcel)
                if book.take(parcel):
                    assembly.begin(parcel.shard)
            assembly.collect()
            events.tick()
    assembly.finish()


def _graph(
    work: Work,
    pools: Pools,
    cluster: Cluster,
    decode: Callable[..., Iterator[pa.Table]],
    ledger: Any,
    pending: Sequence[int],
) -> Generator[pa.Table, None, None]:
    """The receipts of a stream, as they come."""
    _configure(work, cluster, pools)
    tasks = pools.decode_tasks or max(int(cluster.decoding_cpus or cluster.cpus), 1)
    place: dict[str, Any] = {"resources": {DECODES: _A_TOUCH}} if cluster.decoding_cpus else {}
    source = ray.data.from_arrow([pa.table({"shard": [shard]}) for shard in pending])
    if pools.fused:
        gpus = _gpus(pools.detect_gpus, cluster, share=0.25)
        count = pools.detect_actors or (_count(cluster, gpus) if gpus else tasks)
        _check_gpus(cluster, count * gpus)
        _check_demand(cluster, count * (pools.detect_cpus + pools.decode_cpus))
        stream = source.map_batches(
            FusedStage,
            fn_constructor_kwargs={"work": work, "ledger": ledger},
            **_actors(count, pools.detect_cpus + pools.decode_cpus, gpus),
        )
        return _tables(stream)
    # Two pools share the GPUs: each takes half of them, or waiting for one another they would stand still.
    part = 0.5 if work.plans else 1.0
    detect_gpus = _gpus(pools.detect_gpus, cluster, share=part)
    detectors = pools.detect_actors or _count(cluster, detect_gpus, part)
    embed_gpus = _gpus(pools.embed_gpus, cluster, share=part)
    per_cpu = max(int(cluster.cpus / 2), 1)
    embedders = (
        (pools.embed_actors or (_count(cluster, embed_gpus, part) if embed_gpus else per_cpu)) if work.plans else 0
    )
    _check_gpus(cluster, detectors * detect_gpus + embedders * embed_gpus)
    # Of the tasks one is enough to get on.
    _check_demand(cluster, pools.decode_cpus + detectors * pools.detect_cpus + embedders * pools.embed_cpus)
    stream = source.map_batches(
        decode,
        fn_kwargs={"work": replace(work, plans=()), "ledger": ledger},  # so that its processes need not import PyTorch
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.TaskPoolStrategy(min(tasks, len(pending))),
        num_cpus=pools.decode_cpus,
        **place,
    )
    last = () if work.plans else ("commit",)
    stream = stream.map_batches(
        Stage,
        fn_constructor_kwargs={"work": work, "ledger": ledger, "steps": ("detect", *last)},
        **_actors(detectors, pools.detect_cpus, detect_gpus),
    )
    if work.plans:
        stream = stream.map_batches(
            Stage,
            fn_constructor_kwargs={"work": work, "ledger": ledger, "steps": ("embed", "commit")},
            **_actors(embedders, pools.embed_cpus, embed_gpus),
        )
    return _tables(stream)


def _check_demand(cluster: Cluster, cpus: float) -> None:
    """Pools that a machine of one's own cannot hold would wait for ever; a cluster may grow."""
    if cluster.is_own and cpus > cluster.cpus + 1e-6:
        raise UsageError(
            f"The pools hold {cpus:g} CPUs and this machine has {cluster.cpus:g}; ask for fewer actors, or less of each"
        )


def _check_gpus(cluster: Cluster, gpus: float) -> None:
    if cluster.is_own and gpus > cluster.gpus + 1e-6:
        raise UsageError(f"The pools hold {gpus:g} GPUs and this machine has {cluster.gpus:g}; ask for less")


def _tables(stream: Any) -> Generator[pa.Table, None, None]:
    yield from stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _configure(work: Work, cluster: Cluster, pools: Pools) -> None:
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")  # of a stream with little left to do
    context = ray.data.DataContext.get_current()
    # Each row a block of its own.
    context.target_max_block_size = context.target_min_block_size = 1
    context.override_object_store_memory_limit_fraction = _STORE_SHARE
    tasks = pools.decode_tasks or cluster.decoding_cpus or cluster.cpus
    is_roomy = cluster.store_bytes >= _ROOM * tasks * work.max_batch_bytes
    context._max_num_blocks_in_streaming_gen_buffer = _AHEAD if is_roomy else 1
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    context.enable_progress_bars = context.print_on_execution_start = context.enable_auto_log_stats = False
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"


def _actors(count: int, cpus: float, gpus: float) -> dict[str, Any]:
    return {
        "compute": ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        "batch_size": 1,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "num_cpus": cpus,
        **({"num_gpus": gpus} if gpus else {}),
    }


def _gpus(wanted: float | None, cluster: Cluster, *, share: float = 1.0) -> float:
    if wanted is not None:
        return wanted
    return share if cluster.gpus else 0.0


def _count(cluster: Cluster, gpus: float, part: float = 1.0) -> int:
    """Actors that fill this part of the cluster's GPUs, or its CPUs."""
    return max(int(cluster.gpus * part / gpus + 1e-6), 1) if gpus and cluster.gpus else max(int(cluster.cpus), 1)


class _Assembly:
    """The assemblies under way."""

    def __init__(self, work: Work, cluster: Cluster, events: Events) -> None:
        self._events = events
        remote = ray.remote(AssemblyActor).options(
            num_cpus=0,
            max_concurrency=_ASSEMBLIES_EACH,
            max_restarts=_ASSEMBLY_RETRIES,
            max_task_retries=_ASSEMBLY_RETRIES,
        )
        self._actors: list[Any] = [remote.remote(work) for _ in range(max(int(cluster.cpus) // _CPUS_PER_ASSEMBLER, 1))]
        self._running: dict[Any, int] = {}
        self._begun = 0

    def __enter__(self) -> "_Assembly":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)

    def begin(self, shard: int) -> None:
        """Assemble a shard, as soon as an actor is free."""
        while len(self._running) >= _WAITING_EACH * len(self._actors):
            self._take(*ray.wait(list(self._running), timeout=1.0))
            self._events.tick()
        self._running[self._actors[self._begun % len(self._actors)].assemble.remote(shard)] = shard
        self._begun += 1

    def collect(self) -> None:
        """Take what is ready."""
        if self._running:
            self._take(*ray.wait(list(self._running), num_returns=len(self._running), timeout=0))

    def finish(self) -> None:
        """Wait for the rest."""
        while self._running:
            self._take(*ray.wait(list(self._running), timeout=0.5))
            self._events.tick()

    def _take(self, ready: list[Any], _: list[Any]) -> None:
        for ref in ready:
            del self._running[ref]
            result = ray.get(ref)
            if isinstance(result, str):
                raise StorageError(result)
            for status, reason in result:
                self._events.video(status, reason)
            self._events.shard()
