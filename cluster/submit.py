"""`unmask submit`: any of the commands as a job of a cluster, with its output and its exit code here."""

import importlib
import secrets
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main

from cluster.jobs import JobServer, packed
from unmask import console
from unmask.console import INTERRUPTED, civil, say
from unmask.errors import UsageError

__all__ = ["COMMANDS", "app", "checked", "main", "submit"]

COMMANDS: Mapping[str, str] = {
    "preprocess": "pipelines.preprocess",
    "train": "train.fit",
    "evaluate": "train.evaluate",
    "score": "pipelines.score",
}
"""What can be submitted, and the module that the cluster runs."""
# Options and arguments that name places, by the names of their parameters.
_PLACES = ("dataset", "data", "out", "cache")
_ADDRESS = "--address"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
@civil
def submit(
    context: typer.Context,
    command: Annotated[str, typer.Argument(metavar="{preprocess|train|evaluate|score} ...", help="With its options.")],
    address: Annotated[
        str | None, typer.Option(_ADDRESS, help="http://HEAD:8265, the cluster's dashboard; by default RAY_ADDRESS.")
    ] = None,
    working_dir: Annotated[Path, typer.Option("--working-dir", help="The checkout whose code is run.")] = Path(),
    include: Annotated[
        list[Path] | None, typer.Option("--include", help="More files of it that travel along; may be repeated.")
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack/--no-pack", help="Send the code, or use what is installed there.")
    ] = True,
    driver_cpus: Annotated[float, typer.Option("--driver-cpus", help="CPUs that the job's own process holds.")] = 0.0,
    driver_gpus: Annotated[float, typer.Option("--driver-gpus", help="GPUs: evaluate works in its own process.")] = 0.0,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for the end, and show the log.")] = True,
    stop: Annotated[bool, typer.Option("--stop-on-interrupt", help="Let Ctrl-C stop the job, too.")] = False,
) -> None:
    """Run a command on a Ray cluster: unmask submit [OPTIONS] preprocess s3://bucket/videos --out s3://bucket/faces.

    --address may also stand behind the command. Exit status: that of the job; 2 for wrong usage; 130 after Ctrl-C.
    """
    words, behind = _without_address([*context.args])
    checked(command, words)
    server = JobServer(behind or address)
    entrypoint = shlex.join(["python", "-m", COMMANDS[command], *words])
    name = f"unmask-{command}-{secrets.token_hex(4)}"
    begun = False
    try:
        with packed(working_dir.resolve(), include or ()) if pack else nullcontext() as folder:
            begun = True  # an interrupt while it is handed in comes too late to say that it was not
            server.begin(entrypoint, name=name, working_dir=folder, cpus=driver_cpus, gpus=driver_gpus)
        say(f"Job {name} on {server.address}")
        if not follow:
            return
        code = server.follow(name, _write)
    except KeyboardInterrupt:
        if begun:
            _interrupted(server, name, stop=stop)
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)


def _without_address(words: list[str]) -> tuple[list[str], str | None]:
    """The words without `--address`, and its value: of a job there is only the cluster that it runs on."""
    kept, found, pending = [], None, iter(words)
    for word in pending:
        if word == _ADDRESS:
            found = next(pending, None)
        elif word.startswith(f"{_ADDRESS}="):
            found = word.partition("=")[2]
        else:
            kept.append(word)
    return kept, found


def checked(command: str, words: list[str]) -> dict[str, Any]:
    """Read a command's options as it would itself: what is wrong with them is better told here than in a job's log.

    Args:
        command: One of `COMMANDS`.
        words: Its options.

    Returns:
        Its parameters.

    Raises:
        UsageError: The command does not exist, its options are wrong, or a place is one of this machine.
    """
    if command not in COMMANDS:
        raise UsageError(f"unmask submit knows {', '.join(COMMANDS)}; got {command!r}")
    parser = typer.main.get_command(importlib.import_module(COMMANDS[command]).app)
    try:
        found = parser.make_context(f"unmask submit {command}", list(words)).params
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own copy of click has no public name
            raise
        said = error.format_message().rstrip(".")
        raise UsageError(f"{command}: {said[:1].lower()}{said[1:]}; see unmask {command} --help") from None
    for name in _PLACES:
        value = found.get(name)
        for place in value if isinstance(value, list | tuple) else [value]:
            if place is not None and "://" not in str(place) and not Path(place).is_absolute():
                raise UsageError(
                    f"{place} would be looked for in the job's own folder, which ends with it: give an absolute path "
                    "that all nodes see, or a bucket's URL"
                )
    return dict(found)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _interrupted(server: JobServer, job: str, *, stop: bool) -> None:
    if not stop:
        say(f"The job goes on: ray job logs --follow {job} --address {server.address} shows it, ray job stop ends it")
    elif server.stop(job):
        say(f"Stopped job {job}")
    else:
        say(f"Job {job} was told to stop and has not yet: look at {server.address}")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m cluster.submit`; `unmask submit` gives its own arguments."""
    console.run(app, "unmask submit", arguments)


if __name__ == "__main__":
    main()
