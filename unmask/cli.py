"""The `unmask` command. What takes long to import is imported where it is used, so that `--help` answers at once."""

import functools
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unmask import __version__
from unmask.console import (
    INTERRUPTED,
    SOME_FAILED,
    Aggregation,
    AsJson,
    Device,
    Every,
    FaceFinder,
    Fps,
    Frames,
    civil,
    err,
    print_json,
    run,
    sampling_of,
    say,
)
from unmask.console import out as out_console
from unmask.errors import UsageError

if TYPE_CHECKING:
    from unmask.analysis import Analysis, Analyzer
    from unmask.inputs import Source
    from unmask.plan import Sampling
    from unmask.records import VideoScore

__all__ = [
    "app", "evaluate", "export", "faces", "live", "main", "model_card", "preprocess", "probe", "score", "serve",
    "submit", "train",
]  # fmt: skip

# Commands of the rooms read their own options.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
_CLUSTER = "--cluster"

app = typer.Typer(
    name="unmask",
    help="Finds manipulated faces in video.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"unmask {__version__}")
        raise typer.Exit


@app.command()
@civil
def score(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders, http(s) URLs.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write report.html and results.jsonl here.")] = None,
    as_json: AsJson = False,
    frames: Frames = None,
    fps: Fps = None,
    every: Every = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A checkpoint's path, a preset, or a timm backbone.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Weights of the backbone, from a file.")] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Whether a backbone by name gets its published weights."),
    ] = None,
    aggregation: Aggregation = "confident",
    detector: FaceFinder = "mtcnn",
    url_timeout: Annotated[
        float, typer.Option("--url-timeout", help="Give up on a server that is silent for so many seconds.")
    ] = 10.0,
    device: Device = "auto",
    cluster: Annotated[
        bool, typer.Option(_CLUSTER, help="Score a dataset on Ray; see unmask score --cluster --help.")
    ] = False,
) -> None:
    """Score videos: which faces, when, how sure, and why.

    Exit status: 0 if all were analysed, 1 if some failed, 2 for wrong usage.
    """
    from unmask.inputs import FetchLimits, expand
    from unmask.scoring import ScoringOptions

    assert not cluster, "`main` takes these"
    sampling = sampling_of(frames, fps, every)
    options = ScoringOptions(aggregation=aggregation)
    if not 0 < url_timeout < math.inf:
        raise UsageError(f"--url-timeout must be above 0 seconds; got {url_timeout:g}.")
    if out is not None:
        with _writing(out), tempfile.TemporaryFile(dir=_made(out)):
            pass  # better now than when all is scored
    sources = list(expand(inputs))
    from unmask.analysis import Analyzer

    analyzer = Analyzer.load(
        model,
        device=device,
        weights=weights,
        pretrained=pretrained,
        detector=detector,
        options=options,
        limits=FetchLimits(silence_s=url_timeout),
    )
    analyses = []
    for analysis in _analyses(analyzer, sources, sampling, evidence=out is not None):
        analyses.append(analysis)
        if as_json:
            print_json(analysis.score.to_json())
    if not as_json:
        _show([a.score for a in analyses])
    if out is not None:
        _write_results(out, analyses)
    if any(a.score.status == "failed" for a in analyses):
        raise typer.Exit(SOME_FAILED)


def _analyses(
    analyzer: "Analyzer", sources: list["Source"], sampling: "Sampling", *, evidence: bool
) -> Iterator["Analysis"]:
    with _progress(len(sources)) as advance:
        for source in sources:
            yield analyzer.analyze(
                source, sampling, evidence=evidence, progress=functools.partial(advance, source.shown)
            )
            advance(source.shown, 1.0)


@contextmanager
def _progress(videos: int) -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error if that is a terminal: one step a video, filled by the share of it that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=videos)
        done = 0.0

        def advance(name: str, share: float) -> None:
            nonlocal done
            bar.update(task, description=escape(Path(name).name), completed=done + share)
            done += share == 1.0

        yield advance


def _show(scores: list["VideoScore"]) -> None:
    """A row a video, and below it what has to be said, once."""
    style = {"manipulated": "bold red", "authentic": "green", "inconclusive": "yellow"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Video", overflow="fold")
    for heading in ("Verdict", "Score", "Faces", "Frames", "Seconds"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "Verdict" else "right")
    remarks: dict[str, list[str]] = {}
    for score in scores:
        shown = str(score.verdict if score.status == "scored" else score.status)
        table.add_row(
            escape(score.input),
            f"[{style.get(shown, 'magenta')}]{shown}[/]",
            "-" if score.score is None else f"{score.score:.3f}",
            str(len(score.faces)),
            f"{score.frames.scored}/{score.frames.received}",
            f"{score.timings_s.get('total', 0.0):.1f}",
        )
        for remark in [score.error.message] if score.error else score.warnings:
            remarks.setdefault(remark, []).append(score.input)
    out_console.print(table)
    for remark, inputs in remarks.items():
        named = any(name in remark for name in inputs)
        where = "" if named else f"{inputs[0]}: " if len(inputs) == 1 else f"{len(inputs)} videos: "
        out_console.print(escape(f"- {where}{remark}"), highlight=False, soft_wrap=True)


def _made(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return out


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"Nothing can be written to {out} ({error.strerror}); choose another --out.") from None


def _write_results(out: Path, analyses: list["Analysis"]) -> None:
    from unmask.atomic import replacing
    from unmask.inputs import without_password
    from unmask.report import write_report

    report = out / "report.html"
    lines = [json.dumps(a.score.to_json(), allow_nan=False) + "\n" for a in analyses]
    with _writing(out):
        with replacing(out / "results.jsonl") as beside:
            beside.write_text("".join(lines), encoding="utf-8")
        write_report(
            report,
            [a.report_entry() for a in analyses],
            command=shlex.join(["unmask", *map(without_password, sys.argv[1:])]),
        )
    say(f"The report lies in {report.resolve()}")


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def preprocess(context: typer.Context) -> None:
    """Find the faces of a whole dataset, on Ray: boxes, tracks, crops, features, masks, folds."""
    from pipelines.preprocess import main as run_preprocess

    run_preprocess(context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Fine-tune a detector on preprocessed data, by a recipe's name; on Ray where there are several workers."""
    from train.fit import main as run_train

    run_train(context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Score live streams, webcams and uploads on Ray Serve, with an API and a page to watch them."""
    from serve.command import main as run_serve

    run_serve(context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Say how good a model is on preprocessed videos that it has not seen: one page, one JSON file."""
    from train.evaluate import main as run_evaluate

    run_evaluate(context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def export(context: typer.Context) -> None:
    """Write a model as ONNX, for ONNX Runtime on any device; in 8 bits too, with what that costs."""
    from train.export import main as run_export

    run_export(context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def submit(context: typer.Context) -> None:
    """Run preprocess, train, evaluate or score as a job of a Ray cluster; its log and exit code come back."""
    from cluster.submit import main as run_submit

    run_submit(context.args)


@app.command()
@civil
def probe(
    file: Annotated[str, typer.Argument(help="A video file or URL.")],
    as_json: AsJson = False,
) -> None:
    """Say what a file's container and packets tell, without decoding it."""
    from unmask.inputs import Source, fetched
    from unmask.video import probe as probe_video

    with fetched(Source(file)) as path:
        info = probe_video(path).to_json()
    if as_json:
        print_json(info)
        return
    table = Table(show_header=False)
    for name, value in info.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    out_console.print(table)


@app.command()
@civil
def live(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="rtsp(s):// or http(s):// (HLS too), a webcam (/dev/video0), or a file."),
    ],
    as_json: AsJson = False,
    fps: Annotated[float, typer.Option("--fps", help="Frames a second that are scored; 0: all of them.")] = 5.0,
    duration: Annotated[float | None, typer.Option("--duration", help="End after so many seconds.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A checkpoint's path, a preset, or a timm backbone.")
    ] = None,
    aggregation: Aggregation = "confident",
    transport: Annotated[str, typer.Option("--transport", help="How RTSP's packets travel: tcp or udp.")] = "tcp",
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", help="Certificates to trust in place of the system's.")
    ] = None,
    open_timeout: Annotated[
        float, typer.Option("--open-timeout", help="Give a source so many seconds to answer.")
    ] = 5.0,
    stall: Annotated[
        float, typer.Option("--stall", help="Connect again to a source that is silent for so many seconds.")
    ] = 2.0,
    device: Device = "auto",
) -> None:
    """Score one live source as it plays: each face's score, gaps, and the account of all frames.

    A source that is lost is connected to again, for as long as it takes; Ctrl-C ends it. With --json each event is a
    line. Exit status: 0 at the end of the source or of --duration, 1 if the source cannot be opened or read, 2 for
    wrong usage, 130 for Ctrl-C.
    """
    from unmask.streams import StreamOptions

    if duration is not None and not 0 < duration < math.inf:
        raise UsageError(f"--duration must be above 0 seconds; got {duration:g}.")
    options = StreamOptions(
        fps=fps or None,
        open_timeout_s=open_timeout,
        stall_s=stall,
        retry="established",
        transport=transport,  # type: ignore[arg-type]  # checked there
        ca_file=ca_file,
    )
    from unmask.live_command import watch_live

    ended = watch_live(
        source,
        options,
        model=model,
        device=device,
        aggregation=aggregation,
        duration_s=duration,
        as_json=as_json,
    )
    if ended.message is not None:
        say(ended.message)
    if ended.interrupted:
        raise typer.Exit(INTERRUPTED)
    if ended.status == "failed":
        raise typer.Exit(SOME_FAILED)


@app.command(name="model-card")
@civil
def model_card(
    model: Annotated[
        str, typer.Argument(help="A checkpoint's path, a preset, or a timm backbone; by default the one that is used.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what a model is, what it was made from, how good it is, and what it must not be used for."""
    from unmask.card import card_json, card_markdown
    from unmask.presets import DEFAULT_MODEL, described

    description = described(model or DEFAULT_MODEL)
    if as_json:
        print_json(card_json(description))
    else:
        out_console.print(card_markdown(description), end="", markup=False, highlight=False, soft_wrap=True)


@app.command()
@civil
def faces(
    file: Annotated[str, typer.Argument(help="A video file or URL.")],
    out: Annotated[Path, typer.Option("--out", help="Write faces.json and the crops here.")],
    frames: Frames = None,
    fps: Fps = None,
    every: Every = None,
    margin: Annotated[float, typer.Option("--margin", help="Side of a crop over side of the face's box.")] = 1.3,
    aligned: Annotated[bool, typer.Option("--align", help="Turn the crops upright by their landmarks.")] = False,
    detector: FaceFinder = "mtcnn",
    device: Device = "auto",
) -> None:
    """Find the faces of a video: boxes, landmarks, tracks and crops."""
    from unmask.inputs import Source, fetched

    sampling = sampling_of(frames, fps, every)
    if not 0.5 <= margin <= 4:
        raise UsageError(f"--margin must be from 0.5 to 4; got {margin:g}.")
    from unmask.detectors import load_detector
    from unmask.devices import select_device
    from unmask.gallery import write_faces

    finder = load_detector(detector, device=select_device(device))
    source = Source(file)
    with fetched(source) as path, _writing(out):
        count = write_faces(path, out, sampling, finder, name=source.shown, margin=margin, aligned=aligned)
    say(f"{count} faces lie in {out.resolve()}")


def main() -> None:
    """Entry point of the `unmask` console script."""
    if sys.argv[1:2] == ["score"] and _CLUSTER in sys.argv:
        from pipelines.score import main as run_score

        # A command of its own, with options of its own.
        run_score([argument for argument in sys.argv[2:] if argument != _CLUSTER])
    run(app, "unmask")


if __name__ == "__main__":
    main()
