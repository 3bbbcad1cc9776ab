"""`unmask score --cluster`: scores for a whole dataset, one row a video, with a reason where there is none.

Also `python -m pipelines.score`, for `ray job submit`. The scores are those of `unmask score`; where frames lie
so close that faces are followed, the batches in which they travel make small differences.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from pipelines.config import EmbedOptions, Job, Pools, ScoreOptions
from pipelines.display import print_summary
from pipelines.options import (
    Address,
    AllFrames,
    Dataset,
    DecodeCpus,
    DecodeTasks,
    DecodeTimeout,
    DetectActors,
    DetectCpus,
    DetectGpus,
    EmbedActors,
    EmbedCpus,
    EmbedGpus,
    Fault,
    Fused,
    Kind,
    MaxBatch,
    MetricsHost,
    MetricsPort,
    Resume,
    RetryFailed,
    Scale,
    ShardVideos,
    Thresholds,
    detector_options,
    run_options,
    sampled,
)
from pipelines.run import run
from unmask import console
from unmask.console import SOME_FAILED, Aggregation, Device, Every, FaceFinder, Fps, Frames, civil, err, say
from unmask.detection import SCORING_THRESHOLDS
from unmask.errors import UsageError
from unmask.presets import DEFAULT_MODEL
from unmask.products import Products, shard_name
from unmask.scoring import ScoringOptions
from unmask.storage import Store

__all__ = ["app", "main", "publish_scores", "score"]

_POOLS, _THRESHOLDS = Pools(), ",".join(map(str, SCORING_THRESHOLDS))

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@civil
def score(
    dataset: Dataset,
    out: Annotated[str, typer.Option("--out", help="Where the scores go: a folder, or a bucket's URL.")],
    model: Annotated[
        str, typer.Option("--model", help="A checkpoint's path, a preset, or a timm backbone.")
    ] = DEFAULT_MODEL,
    weights: Annotated[str | None, typer.Option("--weights", help="Weights of the backbone, from a file.")] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Whether a backbone by name gets its published weights."),
    ] = None,
    aggregation: Aggregation = "confident",
    kind: Kind = None,
    frames: Frames = None,
    fps: Fps = None,
    every: Every = None,
    all_frames: AllFrames = False,
    detector: FaceFinder = "mtcnn",
    thresholds: Thresholds = _THRESHOLDS,
    scale: Scale = "auto",
    shard_videos: ShardVideos = None,
    resume: Resume = True,
    retry_failed: RetryFailed = False,
    address: Address = None,
    device: Device = "auto",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    decode_tasks: DecodeTasks = None,
    decode_cpus: DecodeCpus = _POOLS.decode_cpus,
    detect_actors: DetectActors = None,
    detect_cpus: DetectCpus = _POOLS.detect_cpus,
    detect_gpus: DetectGpus = None,
    embed_actors: EmbedActors = None,
    embed_cpus: EmbedCpus = _POOLS.embed_cpus,
    embed_gpus: EmbedGpus = None,
    fused: Fused = False,
    max_batch_mb: MaxBatch = _POOLS.max_batch_mb,
    decode_timeout: DecodeTimeout = _POOLS.decode_timeout_s,
    fault: Fault = None,
) -> None:
    """Score a dataset's videos on a Ray cluster, or on all of this machine.

    Writes `scores/` (Parquet, a row a video), `results.jsonl` (as `unmask score --json` prints) and `submission.csv`
    (filename and score; 0.5 where nothing could be scored). Exit status: 0 if every video was analysed, 1 if some
    failed, 2 for wrong usage.
    """
    job = Job(
        sampling=sampled(frames, fps, every, all_frames=all_frames),
        detector=detector_options(detector, thresholds, scale),
        crops=None,
        score=ScoreOptions(
            model=EmbedOptions(model=model, weights=weights, pretrained=pretrained),
            options=ScoringOptions(aggregation=aggregation),
        ),
    )
    options = run_options(
        dataset=kind,
        shard_videos=shard_videos,
        resume=resume,
        retry_failed=retry_failed,
        address=address,
        device=device,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        fault=fault,
        pools=Pools(
            decode_tasks=decode_tasks,
            decode_cpus=decode_cpus,
            detect_actors=detect_actors,
            detect_cpus=detect_cpus,
            detect_gpus=detect_gpus,
            embed_actors=embed_actors,
            embed_cpus=embed_cpus,
            embed_gpus=embed_gpus,
            fused=fused,
            max_batch_mb=max_batch_mb,
            decode_timeout_s=decode_timeout,
        ),
    )
    said = run(dataset, out, job, options, say=say)
    print_summary(said, err)
    try:
        publish_scores(Store(out))
    except UsageError as error:
        say(f"submission.csv is left out: {error.message}")
    if said["failed"]:
        say(f"{said['failed']:,} videos have no score; the reasons are in {out}/scores and on {out}/index.html")
        raise typer.Exit(SOME_FAILED)


def publish_scores(store: Store) -> None:
    """Write `results.jsonl` and `submission.csv` from the scores of all shards, if they are not there yet.

    Raises:
        UsageError: Two videos have one file name, by which a submission knows them.
        StorageError: The output cannot be read or written.
    """
    from pipelines.scores import write_submission

    with TemporaryDirectory(prefix="unmask-") as folder:
        scratch = Path(folder)
        if not store.exists("results.jsonl"):
            with (
                store.writing("results.jsonl", scratch) as beside,
                beside.open("w", encoding="utf-8") as file,
            ):
                file.writelines(f"{row['json']}\n" for row in _rows(store))
        if not store.exists("submission.csv"):
            with store.writing("submission.csv", scratch) as beside:
                write_submission(_rows(store), beside)


def _rows(store: Store) -> Iterator[dict[str, Any]]:
    for shard in Products(store).shards():
        yield from store.read_table(shard_name("scores", shard), ["uri", "score", "json"]).to_pylist()


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m pipelines.score`; `unmask score --cluster` gives its own arguments."""
    console.run(app, "unmask score --cluster", arguments)


if __name__ == "__main__":
    main()
