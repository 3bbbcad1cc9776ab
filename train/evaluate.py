"""`unmask evaluate`: how good a model is on preprocessed videos that it has not seen, in one page and one JSON file.

Also `python -m train.evaluate`.
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from unmask import console
from unmask.console import Aggregation, AsJson, Device, civil, err, print_json, say

if TYPE_CHECKING:
    from train.ensemble import Member
    from train.findings import Examination, Findings
    from unmask.storage import Store

__all__ = ["PAGE", "RESULTS", "app", "evaluate", "main", "show_evaluation", "write_evaluation"]

PAGE, RESULTS = "evaluation.html", "evaluation.json"
"""What is written to the folder of `--out`."""
# What a terminal shows of the metrics.
_SHOWN = {
    "auc": "AUC",
    "eer": "EER",
    "average_precision": "AP",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log loss",
    "plcc": "PLCC",
    "srcc": "SRCC",
    "rmse": "RMSE",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@civil
def evaluate(
    model: Annotated[
        list[str],
        typer.Option("--model", help="A checkpoint, a preset, a timm backbone or an ensemble.json; MODEL:WEIGHT and "
                     "several of them are averaged."),
    ],
    data: Annotated[list[str], typer.Option("--data", help="What unmask preprocess wrote; may be repeated.")],
    out: Annotated[str, typer.Option("--out", help=f"Write {PAGE} and {RESULTS} here: a folder, or a bucket's URL.")],
    split: Annotated[
        str | None,
        typer.Option("--split", help="test, val, train, all, or unseen: all that the model was not made from. By "
                     "default test, and all of a dataset without such a split."),
    ] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also perturb the faces: eight ways, five severities, and a CRF sweep.")
    ] = False,
    robustness_videos: Annotated[
        int, typer.Option("--robustness-videos", help="Perturb at most so many videos; 0 for all.")
    ] = 200,
    heatmaps: Annotated[
        int, typer.Option("--heatmaps", metavar="N", help="Test the heat maps of N faces, and show some.")
    ] = 0,
    aggregation: Aggregation = "confident",
    depth_weights: Annotated[
        str | None,
        typer.Option("--depth-weights", metavar="NAME_OR_DIR", help="Of a model that takes depth maps: a name on the "
                     "hub, or a folder [those on the hub that it was trained with]."),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", help="Draws of videos for the 95% intervals; 0 for none.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of all that is drawn.")] = 0,
    batch: Annotated[int, typer.Option("--batch", help="Faces a pass.")] = 32,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Evaluate a model, or an ensemble, on preprocessed videos: AUC, EER, calibration and more, with their intervals.

    A video whose people the model was made from is refused, unless --split names train or val. Exit status: 0, or 2 for
    wrong usage.
    """
    from train.findings import Examination
    from unmask.scoring import ScoringOptions
    from unmask.storage import Store

    how = Examination(
        scoring=ScoringOptions(aggregation=aggregation),
        batch=batch,
        resamples=resamples,
        seed=seed,
        robustness=robustness,
        robustness_videos=robustness_videos,
        heatmaps=heatmaps,
        depth=depth_weights,
    )
    document = write_evaluation(model, data, Store(out), split, device, how)
    if as_json:
        print_json(document)
    else:
        show_evaluation(document)


def write_evaluation(
    models: list[str],
    data: list[str],
    store: "Store",
    split: str | None,
    device: str,
    how: "Examination",
    beside: Sequence["Member"] = (),
) -> dict[str, Any]:
    """Evaluate models and write the page and the results.

    Args:
        models: A model, or the members of an ensemble, as users name them.
        data: Outputs of `unmask preprocess`.
        store: Where both go.
        split: See `train.selection.CHOICES`.
        device: auto, cpu or cuda.
        how: How thoroughly.
        beside: See `train.selection.select`.

    Returns:
        What `RESULTS` holds.

    Raises:
        UnmaskError: The models, the data or the place cannot be used.
    """
    from train.evaluation_page import render_page

    store.check_writable()  # better now than when all is scored
    findings = _examined(models, data, split, device, how, beside)
    document = {**findings.document, "created": datetime.now(UTC).isoformat(timespec="seconds"), "command": _command()}
    page = render_page(findings, document)
    store.write(RESULTS, (json.dumps(document, allow_nan=False, indent=1) + "\n").encode())
    store.write(PAGE, page.encode("utf-8", errors="backslashreplace"))
    say(f"The evaluation lies in {store.local_path(PAGE) if store.is_local else f'{store.shown}/{PAGE}'}")
    return document


def _examined(
    models: list[str], data: list[str], split: str | None, device: str, how: Any, beside: Sequence["Member"]
) -> "Findings":
    from train.catalogue import Catalogue
    from train.crops import CropReader
    from train.ensemble import Ensemble, weighted_names
    from train.findings import examine, steps
    from train.selection import select
    from unmask.devices import select_device

    weighted_names(models)  # what is wrong with them shows before anything is read
    where = select_device(device)
    catalogue = Catalogue.read(data)
    ensemble = Ensemble.load(models, where)
    for member in ensemble.members:
        catalogue.check_covers(member.description.preprocessing)
    selection = select(catalogue, split, ensemble, beside)
    with _progress(steps(ensemble, selection, how)) as advance:
        return examine(ensemble, selection, CropReader(catalogue), how, progress=advance)


def _command() -> str:
    from unmask.inputs import without_password

    given = sys.argv[2:] if sys.argv[1:2] == ["evaluate"] else sys.argv[1:]
    return shlex.join(["unmask", "evaluate", *map(without_password, given)])


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal."""
    columns = (TextColumn("videos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda n: bar.advance(task, n)


def show_evaluation(document: dict[str, Any]) -> None:
    """Print what has to be said, and the main numbers as a table."""
    for sentence in (*document["notices"], *document["caveats"]):
        say(sentence)
    results, is_mos = document["results"], document["task"] == "mos"
    rows = [("all", results["overall"] if is_mos else results["overall"]["video"])]
    if is_mos:
        rows += [(row["set"], row) for row in results["sets"]]
    else:
        rows += [(row["dataset"], row["video"]) for row in results["datasets"]]
    rows = rows[1:] if len(rows) == 2 else rows
    shown = [name for name in _SHOWN if name in rows[0][1]["metrics"]]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Videos of", overflow="fold")
    for heading in ("Videos", *(_SHOWN[name] for name in shown)):
        table.add_column(heading, justify="right", overflow="fold")
    for name, row in rows:
        table.add_row(escape(name), f"{row['videos']:,}", *(_cell(row["metrics"][metric]) for metric in shown))
    console.out.print(table)


def _cell(measure: dict[str, Any]) -> str:
    if measure["value"] is None:
        return "-"
    value = f"{measure['value']:.3f}"
    if measure["low"] is None:
        return value
    mark = " to " if measure["low"] < 0 else "–"  # noqa: RUF001
    return f"{value}\n[dim]{measure['low']:.3f}{mark}{measure['high']:.3f}[/]"


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m train.evaluate`; `unmask evaluate` gives its own arguments."""
    console.run(app, "unmask evaluate", arguments)


if __name__ == "__main__":
    main()
