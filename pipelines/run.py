"""One run from its dataset to its output: list, check, stream, sum up. What `preprocess` and `score` share."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipelines.config import DEFAULT_BATCH_MB, EmbedOptions, Job, Pools, check_same, detector_digest, recorded
from pipelines.datasets import read
from pipelines.datasets.tree import Listing
from pipelines.display import Display
from pipelines.extras import Extras, check_extras, make_exports, make_folds
from pipelines.metrics import Metrics
from pipelines.progress import Progress, summary
from pipelines.shards import Shards, default_size
from pipelines.work import MANIFEST_FILE, Work
from unmask.errors import UsageError
from unmask.manifest import Video, write_manifest
from unmask.products import Products, shard_name
from unmask.storage import Store

if TYPE_CHECKING:
    from pipelines.embedders import EmbedPlan
    from pipelines.parcels import Parcel
    from pipelines.stream import Events

__all__ = ["RunOptions", "prepare", "run"]

_RUN_FILE = "state/run.json"
_NOT_GIVEN = {"failed", "quarantined"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a job is to be done; none of this shapes its output, but for the size of the shards."""

    dataset: str | None = None
    """Kind of the dataset; None recognises it."""
    pools: Pools = field(default_factory=Pools)
    shard_videos: int | None = None
    """Videos of a shard; None decides by their number."""
    resume: bool = True
    """Continue what lies at the output."""
    retry_failed: bool = False
    """Work again on shards that have videos which failed or were quarantined."""
    address: str | None = None
    """Of a Ray cluster; None starts one on this machine, unless a job runs on one."""
    device: str = "auto"
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    fault: Mapping[str, str] = field(default_factory=dict)


def run(
    uri: str,
    out: str,
    job: Job,
    options: RunOptions,
    *,
    say: Callable[[str], None],
    extras: Extras | None = None,
) -> dict[str, Any]:
    """Do a job.

    Args:
        uri: The dataset.
        out: Where the output goes.
        job: What is wanted.
        options: How.
        say: Tells a person something.
        extras: What is made of the products.

    Returns:
        The summary, which also lies in `summary.json`; its `failed` counts the videos of the whole output that gave
        nothing because of an error.

    Raises:
        UsageError: Something about the dataset, the output or the options must be mended.
        ModelError: A backbone cannot be had.
        StorageError: The output cannot be written.
    """
    extras = extras or Extras()
    if options.device not in {"auto", "cpu"} and options.address is None and "RAY_ADDRESS" not in os.environ:
        from unmask.devices import select_device

        select_device(options.device)  # better now than in every actor
    check_extras(extras, has_crops=job.crops is not None)
    work = prepare(uri, out, job, options, say=say)
    make_folds(work, extras, say)
    products = Products(work.store)
    if options.retry_failed:
        _reopen(products)
    whole = products.shards()
    progress = Progress(
        videos=work.shards.videos,
        done_before=sum(work.shards.count(shard) for shard in whole),
        shards=len(work.shards),
        shards_before=len(whole),
    )
    copies_failed = 0
    with Metrics(options.metrics_port, options.metrics_host) as metrics:
        metrics.follow(progress)
        if len(whole) < len(work.shards) or extras.needs_cluster:
            # What takes seconds to import is not needed where all is done.
            from cluster.session import ray_session
            from pipelines.stream import run_stream

            with ray_session(options.address) as cluster, Display(progress) as display:
                if len(whole) < len(work.shards):
                    run_stream(work, options.pools, cluster, _events(progress, metrics, display))
                    work.store.delete_folder("state")
                if extras.needs_cluster:
                    from pipelines.after import make_copies, make_masks

                    if extras.masks:
                        make_masks(work, say=say, tick=display.tick)
                    if extras.copies:
                        copies_failed = make_copies(work, extras.copies, tick=display.tick)
                    if extras.depth is not None:
                        from pipelines.depth import make_depth

                        make_depth(work, extras.depth, options.pools.embed_actors, say=say, tick=display.tick)
    said = summary(progress)
    said["failed"], said["copies_failed"] = _failed(products), copies_failed
    work.store.write("summary.json", (json.dumps(said, indent=1) + "\n").encode())
    if progress.finished or not work.store.exists("index.html"):
        from pipelines.page import write_page

        write_page(work.store, products, said)
    make_exports(work, extras, say)
    return said


def prepare(uri: str, out: str, job: Job, options: RunOptions, *, say: Callable[[str], None]) -> Work:
    """Check everything that can be checked before work begins, and write down what shall be done.

    Raises:
        UsageError: See `run`.
        ModelError: See `run`.
        StorageError: See `run`.
    """
    # Other processes have other folders to start from.
    store = Store(out if "://" in out else str(Path(out).absolute()))
    store.check_writable()
    detector = detector_digest(job.detector)
    listing = read(uri, options.dataset)
    for note in listing.notes:
        say(f"{listing.dataset}: {note}")
    plans, job = _plans(job)
    paired_from, ordered = _ordered(listing, paired=job.boxes_from_source)
    is_new = not store.exists("job.json")
    if not is_new and not options.resume:
        raise UsageError(
            f"{store.shown} already holds a run; choose another --out, or leave --no-resume out to continue it"
        )
    counted = _Counted(ordered)
    if is_new:
        write_manifest(counted, store.uri_of(MANIFEST_FILE))
    else:
        for _ in counted:
            pass
    before = {} if is_new else recorded(store)
    size = options.shard_videos or before.get("shard_videos") or default_size(counted.videos)
    # Batches of another size would not complete those that are committed.
    batch_mb = options.pools.max_batch_mb or before.get("max_batch_mb") or DEFAULT_BATCH_MB
    manifest = {"videos": counted.videos, "digest": counted.digest()}
    config = check_same(store, job, manifest=manifest, shard_videos=size, max_batch_mb=batch_mb)
    shaping = {"sampling": job.to_json()["sampling"], "detector": detector}
    kept = plans[: len(job.embed)]
    keys = tuple(known.key([shaping, job.boxes_from_source]) for known in kept)
    for key, known in zip(keys, kept, strict=True):
        about = {**asdict(known.options), "sha256": known.sha256, "preprocessing": known.preprocessing.to_json()}
        store.write(f"features/{key}/key.json", json.dumps({**about, **shaping, "dim": known.dim}, indent=1).encode())
    store.sweep()
    return Work(
        store=store,
        run=_count_run(store),
        job=job,
        shards=Shards(
            videos=counted.videos, size=size, paired_from=counted.videos if paired_from is None else paired_from
        ),
        plans=plans,
        keys=keys,
        config=config,
        detector=detector,
        dataset=listing.dataset,
        device=options.device,
        max_batch_bytes=batch_mb * 1024**2,
        decode_timeout_s=options.pools.decode_timeout_s,
        fault=options.fault,
    )


def _plans(job: Job) -> tuple[tuple["EmbedPlan", ...], Job]:
    """Load every backbone once; the job with the digests of their weights."""
    if not job.embed and job.score is None:
        return (), job
    from pipelines.embedders import plan

    embed = [plan(_absolute(options)) for options in job.embed]
    judge = [plan(_absolute(job.score.model), to_judge=True)] if job.score is not None else []
    job = replace(job, embed=tuple(found.options for found in embed))
    if job.score is not None:
        job = replace(job, score=replace(job.score, model=judge[0].options))
    return (*embed, *judge), job


def _absolute(options: EmbedOptions) -> EmbedOptions:
    """The same, with files named so that every process finds them."""
    model, weights = (
        str(Path(p).absolute()) if p and Path(p).is_file() else p for p in (options.model, options.weights)
    )
    assert model is not None
    return replace(options, model=model, weights=weights)


def _ordered(listing: Listing, *, paired: bool) -> tuple[int | None, Iterable[Video]]:
    """The videos in the order of the manifest; where boxes come from originals, fakes that have one are last."""
    if not paired:
        return None, listing.videos
    ids = {video.video for video in listing.videos}
    last = [video for video in listing.videos if video.source in ids and video.source != video.video]
    names = {video.video for video in last}
    first = [video for video in listing.videos if video.video not in names]
    return len(first), itertools.chain(first, last)


class _Counted:
    """Videos on their way: counted and digested."""

    def __init__(self, videos: Iterable[Video]) -> None:
        self._iterable, self._hash, self.videos = videos, hashlib.sha256(), 0

    def __iter__(self) -> Iterator[Video]:
        for video in self._iterable:
            self.videos += 1
            self._hash.update(repr(video).encode(errors="surrogateescape"))
            yield video

    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


def _count_run(store: Store) -> int:
    run = json.loads(store.read(_RUN_FILE))["run"] + 1 if store.exists(_RUN_FILE) else 1
    store.write(_RUN_FILE, json.dumps({"run": run}).encode())
    return int(run)


def _events(progress: Progress, metrics: Metrics, display: Display) -> "Events":
    from pipelines.stream import Events

    def receipt(parcel: "Parcel") -> None:
        if parcel.receipt is not None and parcel.part is not None:
            progress.add(parcel.receipt)
            metrics.add(parcel.receipt)

    def video(status: str, reason: str | None) -> None:
        progress.video_done(status, reason)
        metrics.video_done(status, reason)

    return Events(receipt=receipt, video=video, shard=progress.shard_done, tick=display.tick)


def _failed(products: Products) -> int:
    """Videos of the whole output that gave nothing because of an error."""
    return sum(_failed_in(products, shard) for shard in products.shards())


def _failed_in(products: Products, shard: int) -> int:
    statuses = products.store.read_table(shard_name("videos", shard), ["status"])["status"].to_pylist()
    return sum(status in _NOT_GIVEN for status in statuses)


def _reopen(products: Products) -> None:
    """Make shards with failed videos count as not done."""
    for shard in products.shards():
        if _failed_in(products, shard):
            # What goes by the rows of faces/ first: whoever is killed here, no table is left of other faces.
            for name in products.store.names("depth", deep=True):
                if PurePosixPath(name).name == f"{shard:05d}.parquet":
                    products.store.delete(name)
            products.store.delete(shard_name("videos", shard))
            for name in ("results.jsonl", "submission.csv"):
                products.store.delete(name)
