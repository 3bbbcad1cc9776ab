"""`python -m cluster.smoke`: is this cluster fit for work? Nodes, versions, GPUs, storage, one of each kind of work.

python -m cluster.smoke --address http://HEAD:8265 --storage s3://bucket/smoke     # from anywhere, as a job
python -m cluster.smoke --address auto --storage /shared/smoke                     # on a node
"""

import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cluster import trials
from cluster.jobs import JobServer, packed
from unmask import console
from unmask.console import SOME_FAILED, civil, print_json, say
from unmask.errors import UnmaskError, UsageError
from unmask.storage import Store

__all__ = ["Finding", "app", "main", "smoke"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_TRIALS = ("nodes", "versions", "gpus", "storage", "preprocess", "train", "serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a trial came to."""

    trial: str
    ok: bool
    detail: str
    seconds: float


@app.command()
@civil
def smoke(
    storage: Annotated[str, typer.Option("--storage", help="A folder that all nodes see, or a bucket's URL.")],
    address: Annotated[
        str | None, typer.Option("--address", help="http://HEAD:8265 runs this as a job; else as ray.init takes it.")
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", help="Nodes that there must be at least.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs that there must be at least.")] = 0,
    service: Annotated[
        str | None, typer.Option("--service", help="URL of the service; without it, one is started for the trial.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option("--key-file", help="Its first line lets in there.")] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", help=f"Of {', '.join(_TRIALS)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON a trial on standard output.")] = False,
) -> None:
    """Try a cluster, and say what is wrong with it.

    Exit status: 0 if everything works, 1 if a trial failed, 2 for wrong usage.
    """
    if unknown := sorted(set(skip or ()) - set(_TRIALS)):
        raise UsageError(f"--skip knows {', '.join(_TRIALS)}; got {unknown[0]!r}")
    if address is not None and address.startswith(("http://", "https://")):
        raise typer.Exit(_as_job(address))
    key = _key(key_file)
    store = Store(f"{storage.rstrip('/')}/smoke-{secrets.token_hex(4)}")
    store.check_writable()
    findings = []
    with _connected(address):
        for finding in _findings(store, nodes, gpus, service, key, set(skip or ())):
            findings.append(finding)
            if as_json:
                print_json({k: getattr(finding, k) for k in Finding.__slots__})
    for folder in ("videos", "faces", "nodes", "train"):
        store.delete_folder(folder)
    store.delete("mark")
    if not as_json:
        _show(findings)
    if wrong := [f for f in findings if not f.ok]:
        say(f"{len(wrong)} of {len(findings)} trials failed: {', '.join(f.trial for f in wrong)}")
        raise typer.Exit(SOME_FAILED)


def _as_job(address: str) -> int:
    """Do the same on the cluster, where the nodes are."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word == "--address":
            next(words, None)
        elif not word.startswith("--address="):
            kept.append(word)
    server = JobServer(address)
    entrypoint = shlex.join(["python", "-m", "cluster.smoke", *kept])
    with packed(Path.cwd()) as folder:
        job = server.begin(entrypoint, name=f"unmask-smoke-{secrets.token_hex(4)}", working_dir=folder)
    say(f"Job {job} on {server.address}")
    return server.follow(job, sys.stdout.write)


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--key-file {path} cannot be read ({error.strerror}); check it") from None
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), None)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    from cluster.session import ray_session

    with ray_session(address):
        yield


def _findings(
    store: Store, least: int, gpus: int, service: str | None, key: str | None, skip: set[str]
) -> Iterator[Finding]:
    found = trials.Nodes()

    def count() -> str:
        if len(found.ids) < least:
            raise trials.TrialError(f"the cluster has {len(found.ids)} nodes and {least} were expected")
        return "; ".join(f"{name}: {found.cpus[name]:g} CPUs, {found.gpus[name]:g} GPUs" for name in found.ids)

    use_gpu = sum(found.gpus.values()) >= 2
    wanted: dict[str, Callable[[], str]] = {
        "nodes": count,
        "versions": partial(trials.look_at_versions, found),
        "gpus": partial(trials.look_at_gpus, found, least=gpus),
        "storage": partial(trials.look_at_storage, found, store),
        "preprocess": partial(trials.preprocess, store),
        "train": partial(trials.train, store, use_gpu=use_gpu),
        "serve": partial(trials.serve, service, key),
    }
    for name, trial in wanted.items():
        if name not in skip:
            yield _tried(name, trial)


def _tried(name: str, trial: Callable[[], str]) -> Finding:
    started = time.monotonic()
    try:
        ok, detail = True, trial()
    except UnmaskError as error:
        ok, detail = False, error.message
    except Exception as error:  # anything at all may be wrong with a cluster
        ok, detail = False, f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
    return Finding(trial=name, ok=ok, detail=detail, seconds=time.monotonic() - started)


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Trial", "Result", "Seconds", "What was found"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "Seconds" else "left")
    for f in findings:
        result = "[green]works[/]" if f.ok else "[bold red]FAILED[/]"
        table.add_row(f.trial, result, f"{f.seconds:.1f}", escape(f.detail))
    console.out.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m cluster.smoke`."""
    console.run(app, "python -m cluster.smoke", arguments)


if __name__ == "__main__":
    main()
