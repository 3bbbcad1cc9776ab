"""Make the detector that comes with Unmask, from a folder of portraits: `python -m train.release`.

Every step is a command of its own that goes on where it stopped: `unmask preprocess`, three trainings, and then this
module's own part, which calibrates the model on people of validation, tries it and its baselines on people of the test,
writes down how it does on labelled clips that nothing was chosen by, and puts all that into the checkpoint's card.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from unmask import console
from unmask.console import SOME_FAILED, civil, say
from unmask.errors import TrainingError, UsageError

__all__ = ["app", "main", "release"]

NAME = "unmask-small"
"""What the model is called."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@civil
def release(
    portraits: Annotated[Path, typer.Argument(help="A folder of photographs of real faces, one person a file.")],
    out: Annotated[Path, typer.Option("--out", help="Where everything goes that is made on the way.")],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="ImageNet weights of EfficientNet-Lite0; by default timm fetches them."),
    ] = None,
    clips: Annotated[
        list[Path] | None,
        typer.Option("--clips", help="A dataset of labelled videos, for the card alone; may be repeated."),
    ] = None,
    frames_model: Annotated[
        Path | None, typer.Option("--frames-model", help="Take what selfblend-video has made already.")
    ] = None,
    plain_model: Annotated[
        Path | None, typer.Option("--plain-model", help="Take what selfblend has made already.")
    ] = None,
    portraits_are: Annotated[
        str, typer.Option("--portraits-are", help="For the card: what the photographs are, whose, on what terms.")
    ] = "Photographs of real faces.",
    history: Annotated[
        str, typer.Option("--history", help="For the card: how the weights came about, where not by this alone.")
    ] = "",
) -> None:
    """Train, calibrate and try the small model, and write it with its card.

    Exit status: 0 if the model is there, 1 if a step failed, 2 for wrong usage.
    """
    if not portraits.is_dir():
        raise UsageError(f"there is no folder {portraits}: name one of portraits, one person a file")
    for given in (weights, frames_model, plain_model, *(clips or [])):
        if given is not None and not given.exists():
            raise UsageError(f"there is no {given}: correct the option that names it")
    faces = out / "faces"
    _run("pipelines.preprocess", portraits, "--dataset", "unlabelled", "--frames", "1", "--margin", "1.5",
         "--size", "352", "--format", "jpg", "--out", faces, some_may_fail=True)  # fmt: skip
    plain_model = plain_model or _trained("selfblend", faces, out / "plain", weights)
    frames_model = frames_model or _trained("selfblend-video", faces, out / "frames", plain_model)
    model = _trained("selfblend-clips", faces, out / "clips", frames_model)
    manifests = []
    for number, folder in enumerate(clips or []):
        made = out / f"real-clips-{number}"
        _run("pipelines.preprocess", folder, "--products", "none", "--frames", "4", "--out", made, some_may_fail=True)
        manifests.append(made)
    from train.release_card import finish

    path = finish(
        model,
        frames_model,
        plain_model,
        faces=str(faces),
        clips=[str(m) for m in manifests],
        folder=out,
        name=NAME,
        portraits=portraits_are,
        history=history,
    )
    say(f"The model lies in {path} ({path.stat().st_size / 1e6:.1f} MB); unmask model-card {path} shows its card")


def _trained(recipe: str, faces: Path, out: Path, weights: Path | None) -> Path:
    """Train by a recipe, from some weights, and give the model's path."""
    start = ["--set", f"weights={weights}"] if weights else []
    _run("train.fit", "--recipe", recipe, "--data", faces, "--out", out, "--no-evaluate", *start)
    return out / "model.safetensors"


def _run(module: str, *arguments: str | Path, some_may_fail: bool = False) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    say(f"$ python -m {' '.join([module, *map(str, arguments)])}")
    status = subprocess.run(command, check=False).returncode
    if status and not (some_may_fail and status == SOME_FAILED):
        raise TrainingError(f"{module} failed, see above; mend that and run the same command again")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m train.release`."""
    console.run(app, "python -m train.release", arguments)


if __name__ == "__main__":
    main()
