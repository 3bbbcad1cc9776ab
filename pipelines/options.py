"""Options of the command line that `preprocess` and `score` share."""

from typing import Annotated

import typer

from pipelines.config import DetectorOptions, EmbedOptions, Pools, parse_scale
from pipelines.run import RunOptions
from unmask.console import sampling_of
from unmask.errors import UsageError
from unmask.plan import Sampling

__all__ = [
    "Address",
    "AllFrames",
    "Dataset",
    "DecodeCpus",
    "DecodeTasks",
    "DecodeTimeout",
    "DetectActors",
    "DetectCpus",
    "DetectGpus",
    "EmbedActors",
    "EmbedCpus",
    "EmbedGpus",
    "Fault",
    "Fused",
    "Kind",
    "MaxBatch",
    "MetricsHost",
    "MetricsPort",
    "Resume",
    "RetryFailed",
    "Scale",
    "ShardVideos",
    "Thresholds",
    "detector_options",
    "numbers",
    "pairs",
    "run_options",
    "sampled",
    "weights_of",
]

_POOLS = "Pools"

Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="A folder or bucket with a known layout, or a table of videos.")
]
Kind = Annotated[str | None, typer.Option("--dataset", help="Kind of the dataset, where it is not recognised.")]
AllFrames = Annotated[bool, typer.Option("--all", help="Every frame.")]
Thresholds = Annotated[str, typer.Option("--thresholds", help="Least probabilities of MTCNN's three networks.")]
Scale = Annotated[
    str, typer.Option("--scale", help="Size of the copy that is searched: auto, full, a factor, or face:PX.")
]
ShardVideos = Annotated[int | None, typer.Option("--shard-videos", help="Videos that are published together.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue what lies in --out.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Of a Ray cluster; by default that of RAY_ADDRESS, or a Ray of its own."),
]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Work again on shards with videos that failed.")]
MetricsPort = Annotated[int | None, typer.Option("--metrics-port", help="Serve Prometheus metrics here.")]
MetricsHost = Annotated[str, typer.Option("--metrics-host", help="Address that they are served at.")]
DecodeTasks = Annotated[
    int | None, typer.Option("--decode-tasks", help="Videos decoded at once.", rich_help_panel=_POOLS)
]
DetectActors = Annotated[
    int | None, typer.Option("--detect-actors", help="Processes that find faces.", rich_help_panel=_POOLS)
]
DetectCpus = Annotated[float, typer.Option("--detect-cpus", help="CPUs that each holds.", rich_help_panel=_POOLS)]
DetectGpus = Annotated[
    float | None, typer.Option("--detect-gpus", help="GPUs, or the share of one, of each.", rich_help_panel=_POOLS)
]
DecodeCpus = Annotated[float, typer.Option("--decode-cpus", help="CPUs that each holds.", rich_help_panel=_POOLS)]
EmbedCpus = Annotated[float, typer.Option("--embed-cpus", help="CPUs that each holds.", rich_help_panel=_POOLS)]
EmbedActors = Annotated[
    int | None, typer.Option("--embed-actors", help="Processes that run backbones.", rich_help_panel=_POOLS)
]
EmbedGpus = Annotated[
    float | None, typer.Option("--embed-gpus", help="GPUs, or the share of one, of each.", rich_help_panel=_POOLS)
]
Fused = Annotated[
    bool,
    typer.Option("--fused", help="Decode, detect and embed in one process each.", rich_help_panel=_POOLS),
]
MaxBatch = Annotated[
    int | None,
    typer.Option("--max-batch-mb", help="Most MiB of frames that travel together [64].", rich_help_panel=_POOLS),
]
DecodeTimeout = Annotated[
    float,
    typer.Option("--decode-timeout", help="End a decoder that is silent for so many seconds.", rich_help_panel=_POOLS),
]
Fault = Annotated[list[str] | None, typer.Option("--debug-fault", hidden=True, help="VIDEO=abort or VIDEO=hang.")]


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers between commas.

    Raises:
        UsageError: There is something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes numbers between commas; got {text!r}") from None


def sampled(frames: int | None, fps: float | None, every: int | None, *, all_frames: bool) -> Sampling:
    """The sampling that the options say.

    Raises:
        UsageError: They exclude each other.
    """
    if all_frames and not frames is fps is every is None:
        raise UsageError("--all excludes --frames, --fps and --every; give one of them.")
    return sampling_of(frames, fps, 1 if all_frames else every)


def detector_options(name: str, thresholds: str, scale: str) -> DetectorOptions:
    """The detector that the options say. Raises as `DetectorOptions`, `numbers` and `parse_scale` do."""
    found = numbers("--thresholds", thresholds)
    if len(found) != 3:
        raise UsageError(f"--thresholds takes three numbers between commas; got {thresholds!r}")
    factor, smallest_px = parse_scale(scale)
    least = (found[0], found[1], found[2])
    return DetectorOptions(name=name, thresholds=least, scale=factor, smallest_face_px=smallest_px)


def pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """NAME=VALUE, several times.

    Raises:
        UsageError: There is no `=`.
    """
    found = {}
    for text in texts or []:
        name, mark, value = text.partition("=")
        if not (name and mark and value):
            raise UsageError(f"{option} takes NAME=VALUE; got {text!r}")
        found[name] = value
    return found


def weights_of(models: list[str], weights: dict[str, str], pretrained: bool | None) -> tuple[EmbedOptions, ...]:
    """The backbones that were named, with their weights.

    Raises:
        UsageError: Weights are given for none of them, or one is named twice.
    """
    if unknown := sorted(set(weights) - set(models)):
        raise UsageError(f"--weights names {unknown[0]}, which no --embed does; name the backbone first")
    if len(set(models)) < len(models):
        raise UsageError("--embed names a backbone twice; once is enough")
    return tuple(EmbedOptions(model=m, weights=weights.get(m), pretrained=pretrained) for m in models)


def run_options(
    *,
    dataset: str | None,
    shard_videos: int | None,
    resume: bool,
    retry_failed: bool,
    address: str | None,
    device: str,
    metrics_port: int | None,
    metrics_host: str,
    fault: list[str] | None,
    pools: Pools,
) -> RunOptions:
    """The options of a run. Raises as `RunOptions` does."""
    return RunOptions(
        dataset=dataset,
        pools=pools,
        shard_videos=shard_videos,
        resume=resume,
        retry_failed=retry_failed,
        address=address,
        device=device,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        fault=pairs("--debug-fault", fault),
    )
