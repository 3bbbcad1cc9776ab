"""`unmask serve`: the service on this machine or on a cluster, until Ctrl-C."""

import contextlib
import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.session import ray_session
from serve.settings import Settings, key_digests, settings_from
from unmask.console import Aggregation, Device, civil, run, say
from unmask.errors import UsageError

__all__ = ["app", "main", "serve", "serving"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_READY_S = 300.0
# Serve's own processes need none; a machine with fewer cores than this counts as one that has them.
_LEAST_CPUS = 4


@app.command()
@civil
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen at.")] = 8000,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A checkpoint's path, a preset or a timm backbone; NAME=MODEL for more of them."),
    ] = None,
    device: Device = "auto",
    max_streams: Annotated[int, typer.Option("--max-streams", help="Streams that may run at once.")] = 16,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="Keys that let in, one a line; required on other addresses.")
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Let URLs and streams lead into private networks.")
    ] = False,
    state: Annotated[
        Path, typer.Option("--state", help="Folder of results, streams and events: a restart goes on from it.")
    ] = Path("unmask-state"),
    max_upload_mb: Annotated[int, typer.Option("--max-upload-mb", help="Larger uploads are refused.")] = 1024,
    hosts: Annotated[int, typer.Option("--hosts", help="Processes that hold streams.")] = 2,
    analysts: Annotated[int, typer.Option("--analysts", help="Uploads analysed at once.")] = 1,
    scorers: Annotated[int, typer.Option("--scorers", help="Scorers at the least; of 2, one may die.")] = 1,
    max_scorers: Annotated[int, typer.Option("--max-scorers", help="Scorers at the most.")] = 4,
    aggregation: Aggregation = "confident",
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster; by default that of RAY_ADDRESS, or one's own.")
    ] = None,
) -> None:
    """Score live streams, webcams and uploads, with an API and a page to watch them.

    Runs until Ctrl-C. Exit status: 130 then, 2 for wrong usage.
    """
    named = _named(model or [])
    settings = settings_from(
        {
            "host": host, "port": port, "model": named.pop("", ""), "models": named, "device": device,
            "max_streams": max_streams, "api_key_file": api_key_file and api_key_file.resolve(),
            "allow_private": allow_private, "state": state.resolve(), "max_upload_mb": max_upload_mb,
            "hosts": hosts, "analysts": analysts, "scorers": scorers, "max_scorers": max(scorers, max_scorers),
            "aggregation": aggregation,
        }
    )  # fmt: skip
    settings.check_door()
    key_digests(settings.api_key_file)
    _check(settings)
    say(f"Starting; the page will be at http://{host}:{port}/")
    with serving(settings, address=address) as url:
        say(f"Ready at {url}/ (results and streams are kept in {settings.state}; Ctrl-C ends it)")
        threading.Event().wait()


def _check(settings: Settings) -> None:
    """See in good time that the models, the device and the port are there: a sentence now, not a log later.

    Raises:
        UnmaskError: They are not.
    """
    from unmask.devices import select_device
    from unmask.presets import DEFAULT_MODEL, resolve
    from unmask.scoring import ScoringOptions

    ScoringOptions(aggregation=settings.aggregation)
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise UsageError(f"{place} cannot be listened at ({error.strerror}); choose another --port or --host") from None
    select_device(settings.device)
    for spec in settings.named_models().values():
        resolve(spec or DEFAULT_MODEL)[1].check_detects()


def _named(models: list[str]) -> dict[str, str]:
    """Models by name; the default one under the empty name."""
    named: dict[str, str] = {}
    for text in models:
        name, mark, spec = text.rpartition("=")
        if name in named or (mark and not name):
            raise UsageError(f"--model names {name or 'the default model'} twice, or not at all; got {text!r}")
        named[name] = spec
    return named


@contextmanager
def serving(settings: Settings, *, address: str | None = None, cpus: int | None = None) -> Iterator[str]:
    """The service, ready.

    Args:
        settings: Its settings.
        address: Of a Ray cluster; else one's own is started.
        cpus: How many CPUs a Ray of one's own counts.

    Yields:
        Its URL.

    Raises:
        UsageError: It cannot be started here.
    """
    from unmask.workers import cores

    with ray_session(address, cpus=cpus or max(cores(), _LEAST_CPUS)):
        import ray
        from ray import serve as ray_serve

        from serve.app import APP, build

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet: dict[str, Any] = {"log_level": "WARNING", "enable_access_log": False}
        try:
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options={"host": settings.host, "port": settings.port},
                logging_config=quiet,
            )
            ray_serve.run(build(settings), name=APP, route_prefix="/", logging_config=quiet)
        except (RuntimeError, ray.exceptions.RayError) as error:
            cause = " ".join(str(error).split())[:200]
            ray_serve.shutdown()  # type: ignore[no-untyped-call]
            raise UsageError(
                f"the service cannot be started ({cause}); see what else uses port {settings.port}"
            ) from None
        try:
            url = f"http://{settings.host}:{settings.port}"
            _await_ready(settings)
            yield url
        finally:
            # Its hosts last: while there is a desk, it starts those anew that end.
            ray_serve.shutdown()  # type: ignore[no-untyped-call]
            _end_hosts(settings, APP)


def _await_ready(settings: Settings) -> None:
    """Wait until streams and uploads are taken."""
    near = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    headers = {}
    if settings.api_key_file is not None:
        keys = [line.strip() for line in settings.api_key_file.read_text().splitlines()]
        headers["X-Api-Key"] = next(key for key in keys if key and not key.startswith("#"))
    request = urllib.request.Request(f"http://{near}:{settings.port}/readyz", headers=headers)
    deadline = time.monotonic() + _READY_S
    said = ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                if json.load(answer)["ready"]:
                    return
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace")
            error.close()
        except OSError as error:
            said = str(error)
        time.sleep(0.2)
    raise UsageError(f"the service was not ready after {_READY_S:g} s ({said}); see its log")


def _end_hosts(settings: Settings, name: str) -> None:
    """End the processes that would outlive the desk."""
    import ray

    for number in range(settings.hosts):
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(f"unmask-host-{name}-{number}", namespace="unmask"))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `unmask serve`.

    Args:
        arguments: After the sub-command's name.
    """
    run(app, "unmask serve", arguments)
