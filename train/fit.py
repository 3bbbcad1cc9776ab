"""`unmask train`: fine-tune a detector by naming a recipe and preprocessed data.

Also `python -m train.fit`, for `ray job submit --working-dir . -- python -m train.fit ...`.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from unmask import console
from unmask.console import Device, civil, err, say
from unmask.console import out as out_console
from unmask.errors import UsageError
from unmask.inputs import without_password

if TYPE_CHECKING:
    from train.config import TrainConfig
    from train.project import Project

__all__ = ["app", "main", "train"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@civil
def train(
    recipe: Annotated[str | None, typer.Option("--recipe", help="What to train, and how; see --list.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="An output of unmask preprocess; may be given several times.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Where the model goes: a folder or a bucket.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a field of the recipe; see --show.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="CKPT[,CKPT...]", help="Whom the recipe distill learns from."),
    ] = None,
    student: Annotated[
        str | None, typer.Option("--student", metavar="NAME", help="A timm backbone for the recipe distill.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Processes that train together [a GPU each; 1 on CPUs, without Ray]."),
    ] = None,
    device: Device = "auto",
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster [RAY_ADDRESS, else one of one's own].")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="A folder on each node for crops that lie in buckets.")
    ] = None,
    max_failures: Annotated[int, typer.Option("--max-failures", help="How often lost workers are replaced.")] = 3,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Evaluate the result on people that were left for it.")
    ] = True,
    listed: Annotated[bool, typer.Option("--list", help="Show all recipes and what they reproduce.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Show the recipe's fields, as --set leaves them.")] = False,
    show_augment: Annotated[
        Path | None, typer.Option("--show-augment", help="Draw a sheet of augmented crops of --data as PNG, and end.")
    ] = None,
) -> None:
    """Train a model, from wherever an earlier run of the same command stopped.

    Exit status: 0 if the model is trained, 1 if training could not go on, 2 for wrong usage.
    """
    if listed:
        return _list()
    if recipe is None:
        raise UsageError("give --recipe NAME; unmask train --list shows them")
    from train.config import overridden
    from train.recipes import recipe as recipe_named

    config = overridden(_taught(recipe_named(recipe), teacher, student, must=not show), settings or [])
    if config.weights is not None:
        config = replace(config, weights=_weights(config.weights))
    if Path(config.input.depth).expanduser().is_dir():
        config = replace(config, input=replace(config.input, depth=_absolute(config.input.depth)))
    if show:
        out_console.print(json.dumps(config.to_json(), indent=1), highlight=False, soft_wrap=True)
        return None
    if not data:
        raise UsageError("give --data DIR, an output of unmask preprocess")
    sources = tuple(_absolute(uri) for uri in data)
    if show_augment is not None:
        from train.show import write_augmented

        write_augmented(config, sources, show_augment)
        return say(f"The sheet lies in {show_augment.resolve()}")
    if out is None:
        raise UsageError("give --out DIR, where the model shall go")
    if (workers is not None and workers < 1) or max_failures < 0:
        raise UsageError("--workers is at least 1, and --max-failures 0 or more")
    from train.project import Project

    project = Project.begin(_absolute(out), config, sources)
    if not project.is_trained():
        _train(project, workers, device, address, cache, max_failures)
    chosen = project.conclude()
    say(f"The model lies in {chosen}")
    if evaluate:
        _evaluate(project, device)
    return None


def _taught(config: "TrainConfig", teacher: list[str] | None, student: str | None, *, must: bool) -> "TrainConfig":
    """A recipe with the teachers and the student that were named."""
    names = [_absolute_model(name) for given in teacher or [] for name in given.split(",") if name]
    if config.recipe != "distill" and (names or student):
        raise UsageError("--teacher and --student go with --recipe distill; --set model.backbone=NAME with any")
    if config.recipe == "distill" and must and not names:
        raise UsageError("give --teacher CKPT, the model that the student shall learn from")
    if not names:
        return config if student is None else replace(config, model=replace(config.model, backbone=student))
    from train.distill import distilled

    return distilled(config, names, student)


def _absolute_model(name: str) -> str:
    """A checkpoint's path as workers find it; names of models as they are."""
    is_file = any(part and Path(part).exists() for part in (name, name.rpartition(":")[0]))
    return _absolute(name) if is_file else name


def _train(
    project: "Project",
    workers: int | None,
    device: str,
    address: str | None,
    cache: Path | None,
    max_failures: int,
) -> None:
    from train.worker import Task

    task = Task(
        config=project.config,
        data=project.data,
        out=project.store.uri,
        cache=str(cache.resolve()) if cache else None,
    )
    is_cluster = bool(address or os.environ.get("RAY_ADDRESS"))
    if not is_cluster:
        import torch

        from unmask.devices import select_device

        chosen = select_device(device)
        workers = workers or (torch.cuda.device_count() if chosen.type == "cuda" and device == "auto" else 1)
        if workers == 1:
            from train.context import Context
            from train.worker import train_all

            return train_all(task, Context(device=chosen), say)
    from train.distributed import fit_on_ray

    fit_on_ray(task, workers=workers, address=address, device=device, max_failures=max_failures, say=say)
    return None


def _evaluate(project: "Project", device: str) -> None:
    try:
        project.evaluate(device)
    except UsageError as error:  # nobody was left for it, for one
        say(f"The model was not evaluated: {error.message}")


def _absolute(uri: str) -> str:
    """A path as workers find it, whose working directory is another; URLs as they are."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def _weights(name: str) -> str:
    if "://" in name:
        raise UsageError(f"weights={without_password(name)} is no file: fetch it to where all workers find it")
    return _absolute(name)


def _list() -> None:
    from train.recipes import RECIPES

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Recipe", "Backbone", "Head", "What it reproduces"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "Recipe")
    for name, make in RECIPES.items():
        config = make()
        what = (make.__doc__ or "").strip().partition("\n")[0]
        table.add_row(name, escape(config.model.backbone), config.model.head, escape(what))
    out_console.print(table)
    err.print("Fields of a recipe: unmask train --recipe NAME --show", highlight=False)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m train.fit`; `unmask train` gives its own arguments."""
    console.run(app, "unmask train", arguments)


if __name__ == "__main__":
    main()
