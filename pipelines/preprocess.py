"""`unmask preprocess`: every face of a dataset, exactly once, with a reason for every video that gave none.

Also `python -m pipelines.preprocess`, for `ray job submit --working-dir . -- python -m pipelines.preprocess ...`.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.config import FACENET, CropOptions, EmbedOptions, Job, Pools
from pipelines.depth import DEPTH_WEIGHTS, DepthOptions
from pipelines.display import print_summary
from pipelines.extras import EXPORTS, Extras
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
    numbers,
    pairs,
    run_options,
    sampled,
    weights_of,
)
from pipelines.run import run
from unmask import console
from unmask.console import SOME_FAILED, Device, Every, FaceFinder, Fps, Frames, civil, err, say
from unmask.detection import SCORING_THRESHOLDS
from unmask.errors import UsageError

__all__ = ["app", "main", "preprocess"]

_POOLS, _THRESHOLDS = Pools(), ",".join(map(str, SCORING_THRESHOLDS))
_PRODUCTS = ("crops", "masks", "copies", "depth", "folds")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@civil
def preprocess(
    dataset: Dataset,
    out: Annotated[str, typer.Option("--out", help="Where the products go: a folder, or a bucket's URL.")],
    kind: Kind = None,
    frames: Frames = None,
    fps: Fps = None,
    every: Every = None,
    all_frames: AllFrames = False,
    products: Annotated[
        str, typer.Option("--products", help=f"Beside faces and videos: {', '.join(_PRODUCTS)}; or none.")
    ] = "crops",
    margin: Annotated[float, typer.Option("--margin", help="Side of a crop over side of the face's box.")] = 1.3,
    size: Annotated[
        int | None, typer.Option("--size", help="Side of all crops in pixels; the frame's resolution by default.")
    ] = None,
    align: Annotated[bool, typer.Option("--align", help="Turn crops upright by their landmarks.")] = False,
    square: Annotated[bool, typer.Option("--square/--box", help="Square crops, or the proportions of the box.")] = True,
    image_format: Annotated[str, typer.Option("--format", help="Of crops: png, jpg or webp.")] = "png",
    crops_as: Annotated[str, typer.Option("--crops-as", help="tar (WebDataset) or files.")] = "tar",
    detector: FaceFinder = "mtcnn",
    thresholds: Thresholds = _THRESHOLDS,
    scale: Scale = "auto",
    boxes_from_originals: Annotated[
        bool, typer.Option("--boxes-from-originals", help="Fakes get the frames and boxes of their originals.")
    ] = False,
    embed: Annotated[
        list[str] | None,
        typer.Option("--embed", help=f"A backbone whose features are kept, or {FACENET}; may be repeated."),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="BACKBONE=FILE: weights of a backbone; may be repeated.")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Whether backbones by name get their published weights."),
    ] = None,
    crf: Annotated[str, typer.Option("--crf", help="Qualities of re-encoded copies.")] = "23,28,32",
    depth_weights: Annotated[
        str, typer.Option("--depth-weights", help="Of depth maps: a name on the hub, a folder, or random.")
    ] = DEPTH_WEIGHTS,
    depth_size: Annotated[
        int, typer.Option("--depth-size", help="Side of the depth network's input, a multiple of 14.")
    ] = 518,
    depth_features: Annotated[
        str | None,
        typer.Option("--depth-features", help="A backbone: keep what it says of the depth maps in place of the maps."),
    ] = None,
    folds: Annotated[
        int, typer.Option("--folds", help="How many; 0 for the dataset's usual number (DFDC 16, others 5).")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of folds and splits.")] = 0,
    export: Annotated[
        list[str] | None,
        typer.Option("--export", help=f"Also write the layout of {' or '.join(EXPORTS)} to OUT/exports."),
    ] = None,
    export_name: Annotated[
        str | None, typer.Option("--export-name", help="What DeepfakeBench shall call the dataset.")
    ] = None,
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
    """Find the faces of a dataset's videos; write boxes, landmarks, tracks, crops and features.

    A run that was interrupted is continued by the same command. Exit status: 0 if every video was looked at, 1 if some
    failed, 2 for wrong usage.
    """
    wanted = _products(products)
    if depth_features and "depth" not in wanted:
        raise UsageError("--depth-features goes with depth among the --products")
    more = [depth_features] if depth_features and depth_features not in (embed or []) else []
    backbones = {e.model: e for e in weights_of([*(embed or []), *more], pairs("--weights", weights), pretrained)}
    job = Job(
        sampling=sampled(frames, fps, every, all_frames=all_frames),
        detector=detector_options(detector, thresholds, scale),
        crops=CropOptions(
            margin=margin,
            square=square,
            align=align,
            size_px=size,
            format=image_format,  # type: ignore[arg-type]
            layout=crops_as,  # type: ignore[arg-type]
        )
        if "crops" in wanted
        else None,
        embed=tuple(backbones[name] for name in embed or []),
        boxes_from_source=boxes_from_originals,
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
    extras = Extras(
        folds=folds if "folds" in wanted else None,
        seed=seed,
        masks="masks" in wanted,
        copies=tuple(dict.fromkeys(map(int, numbers("--crf", crf)))) if "copies" in wanted else (),
        depth=_depth(depth_weights, depth_size, backbones.get(depth_features or ""), device)
        if "depth" in wanted
        else None,
        exports=tuple(export or ()),
        export_name=export_name,
    )
    said = run(dataset, out, job, options, say=say, extras=extras)
    print_summary(said, err)
    if said["copies_failed"]:
        say(f"{said['copies_failed']:,} copies could not be made; the reasons are in {out}/copies")
    if said["failed"]:
        say(f"{said['failed']:,} videos gave nothing; the reasons are in {out}/videos and on {out}/index.html")
    if said["failed"] or said["copies_failed"]:
        raise typer.Exit(SOME_FAILED)


def _depth(weights: str, size_px: int, features: EmbedOptions | None, device: str) -> DepthOptions:
    folder = Path(weights).expanduser()
    # Other processes have other folders to start from.
    weights = str(folder.absolute()) if folder.is_dir() else weights
    return DepthOptions(weights=weights, size_px=size_px, features=features, device=device)


def _products(text: str) -> set[str]:
    wanted = {part.strip() for part in text.split(",") if part.strip()} - {"none"}
    if unknown := sorted(wanted - set(_PRODUCTS)):
        raise UsageError(f"--products knows {', '.join(_PRODUCTS)}; got {unknown[0]!r}")
    return wanted


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m pipelines.preprocess`; `unmask preprocess` gives its own arguments."""
    console.run(app, "unmask preprocess", arguments)


if __name__ == "__main__":
    main()
