"""What all commands share: exit statuses, errors as one sentence, Ctrl-C, JSON on standard output, sampling options."""

import errno
import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from unmask.errors import MediaError, TrainingError, UnmaskError, UsageError

if TYPE_CHECKING:
    from unmask.plan import Sampling

__all__ = [
    "DEFAULT_FRAMES",
    "INTERRUPTED",
    "SOME_FAILED",
    "WRONG_USAGE",
    "Aggregation",
    "AsJson",
    "Device",
    "Every",
    "FaceFinder",
    "Fps",
    "Frames",
    "civil",
    "err",
    "out",
    "print_json",
    "run",
    "sampling_of",
    "say",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")

SOME_FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
"""Exit statuses."""
# User and password of a URL, wherever it stands in a sentence.
_SECRET = re.compile(r"([a-z][a-z0-9+.-]*://)[^/?#\s]*@", re.IGNORECASE)
DEFAULT_FRAMES = 32
"""Frames of a video that are looked at, where nothing else is said."""

out, err = Console(), Console(stderr=True)

Frames = Annotated[int | None, typer.Option("--frames", help=f"N frames, spread evenly [{DEFAULT_FRAMES}].")]
Fps = Annotated[float | None, typer.Option("--fps", help="F frames a second.")]
Every = Annotated[int | None, typer.Option("--every", help="Every N-th frame; 1 is all of them.")]
Aggregation = Annotated[
    str, typer.Option("--aggregation", help="How frames make a track's score: confident, mean or max.")
]
FaceFinder = Annotated[
    str, typer.Option("--detector", help="What finds faces: mtcnn, or hog (dlib's; pip install unmask\\[dlib]).")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]


def civil(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn what a user can mend into one sentence and an exit status, and Ctrl-C into 130."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except UnmaskError as error:
            say(error.message)
            raise typer.Exit(SOME_FAILED if isinstance(error, MediaError | TrainingError) else WRONG_USAGE) from None
        except KeyboardInterrupt:
            say("Interrupted; nothing half-written was left.")
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # whoever read the output has enough: no error
            # Else Python would try to write the rest again when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            say(f"{error.filename or 'Standard output'} cannot be written or read ({error.strerror}).")
            raise typer.Exit(SOME_FAILED) from None

    return wrapped


def say(message: str) -> None:
    """Tell a person something, on standard error; never the password of a URL."""
    shown = _SECRET.sub(r"\1", message)
    err.print(f"unmask: {escape(shown)}", soft_wrap=True, highlight=False)


def print_json(plain: object) -> None:
    """Print an object on a line of its own, for a program to read."""
    sys.stdout.write(json.dumps(plain, allow_nan=False) + "\n")
    sys.stdout.flush()


def sampling_of(frames: int | None, fps: float | None, every: int | None) -> "Sampling":
    """The sampling that the options say.

    Raises:
        UsageError: They exclude each other.
    """
    from unmask.plan import Sampling

    if sum(option is not None for option in (frames, fps, every)) > 1:
        raise UsageError("--frames, --fps and --every exclude each other; give one of them.")
    if frames is fps is every is None:
        frames = DEFAULT_FRAMES
    return Sampling(frames=frames, rate_fps=fps, every=every)


def run(app: typer.Typer, name: str, arguments: list[str] | None = None) -> None:
    """Run a command to its end, and exit with its status.

    Args:
        app: The command.
        name: What it is called.
        arguments: In place of those of the process.
    """
    if sys.stdout is None:
        sys.exit(f"{name}: Standard output is closed; give it somewhere to go.")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A file's name need not be text.
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        app(arguments, prog_name=name)
    except BaseException as error:
        # An import that is interrupted fails in ways of its own.
        if _stopped and not isinstance(error, SystemExit):
            say("Interrupted; nothing half-written was left.")
            sys.exit(INTERRUPTED)
        raise


_stopped = False


def _stop(*_: object) -> None:
    """The first signal stops the work in good order; those after it are passed over, so that it can."""
    global _stopped
    if not _stopped:
        _stopped = True
        raise KeyboardInterrupt
