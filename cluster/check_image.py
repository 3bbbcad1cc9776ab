"""Do the steps of the Dockerfile in a clean root file system, where there is no Docker.

    sudo python -m cluster.check_image [--accelerator cpu] [--build-arg NAME=VALUE] [--keep FOLDER]

debootstrap makes what the base image is: a minimal Debian. Each stage gets a copy of its base; RUN runs in a chroot, as
the user of the stage. At the end the image's user starts each command once, and a video is scored. What a container
engine adds is not tried: layers, the healthcheck's timer, GPUs.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from cluster.dockerfile import Instruction, Stage, pairs, stages
from unmask import console
from unmask.console import civil, say
from unmask.errors import Reason, UnmaskError, UsageError

__all__ = ["Root", "app", "check_image", "main"]

ROOT = Path(__file__).resolve().parents[1]
_BASE = "debian:bookworm-slim"
# How this machine reaches its package indexes is no part of the image.
_WAY_OUT = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL",
            "UV_DEFAULT_INDEX", "UV_INDEX_URL")  # fmt: skip
_HOST_FILES = ("/etc/resolv.conf", "/etc/hosts")
# The image's own package of certificates would write over one of the same name.
_CERTIFICATES, _COPY = Path("/etc/ssl/certs/ca-certificates.crt"), "/etc/ssl/host.crt"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_COMMANDS = ("preprocess", "score --cluster", "train", "evaluate", "serve", "submit")
# What the image must be able to do, as its own user.
_TRIALS = (
    "unmask --version",
    "ray --version",
    "python -c 'import torch, torchvision, ray.data, ray.serve, ray.train, cv2, av, timm; print(torch.__version__)'",
    *(f"unmask {command} --help > help && test -s help" for command in _COMMANDS),
    "python -m cluster.smoke --help > help && test -s help",
    "python -m unmask.demo clips && unmask score clips --frames 4 --out report && test -s report/report.html",
    "test \"$(id -u)\" = 1000 && ! touch /opt/unmask/x 2> /dev/null && touch /var/lib/unmask/x",
)  # fmt: skip

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(slots=True)
class Root:
    """A stage's root file system, and what its instructions have set."""

    path: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"

    def run(self, command: str) -> None:
        """Run a shell command in it.

        Raises:
            UnmaskError: It failed.
        """
        variables = {**_way_out(), **self.arguments, **self.env}
        home = "/root" if self.user.startswith("0") else "/home/unmask"
        inside = ["chroot", f"--userspec={self.user}", str(self.path), "/usr/bin/env", "-i", f"HOME={home}"]
        inside += [f"{name}={value}" for name, value in variables.items()]
        inside += ["/bin/sh", "-c", f"cd {shlex.quote(self.folder)} && {command}"]
        # What is mounted goes with the process.
        script = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec "$@"'
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script, str(self.path), *inside], check=False)
        if done.returncode:
            raise _failed(f"{command[:200]} ended with {done.returncode}")

    def copy(self, instruction: Instruction, context: Path, others: dict[str, "Root"]) -> None:
        """COPY, from the context or another stage."""
        words = instruction.words({**self.arguments, **self.env})
        source = context
        if words[0].startswith("--from="):
            source = others[words.pop(0).removeprefix("--from=")].path
        *names, target = words
        place = self.path / os.path.normpath(Path(self.folder) / target).lstrip("/")
        for name in names:
            origin = source / name.lstrip("/")
            if origin.is_dir():
                skipped = shutil.ignore_patterns("__pycache__")
                shutil.copytree(origin, place, symlinks=True, dirs_exist_ok=True, ignore=skipped)
            else:
                to = place / origin.name if target.endswith("/") else place
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, to)


def _way_out() -> dict[str, str]:
    found = {name: os.environ[name] for name in _WAY_OUT if name in os.environ}
    return {**found, **({"PIP_CERT": _COPY, "SSL_CERT_FILE": _COPY} if _CERTIFICATES.exists() else {})}


def _failed(what: str) -> UnmaskError:
    return UnmaskError(Reason.INTERNAL, f"The image cannot be made: {what}; see above")


@app.command()
@civil
def check_image(
    accelerator: Annotated[str, typer.Option("--accelerator", help="gpu or cpu.")] = "gpu",
    keep: Annotated[Path | None, typer.Option("--keep", help="Make the roots here, and leave them there.")] = None,
    build_arg: Annotated[
        list[str] | None, typer.Option("--build-arg", metavar="NAME=VALUE", help="Another one; may be repeated.")
    ] = None,
    mirror: Annotated[str | None, typer.Option("--mirror", help="Of Debian, for debootstrap.")] = None,
) -> None:
    """Do the steps of cluster/Dockerfile in a clean root file system, and try what came out.

    Needs root, debootstrap and 25 GB. Exit status: 0, or 2 where a step failed.
    """
    if accelerator not in ("gpu", "cpu"):
        raise UsageError(f"--accelerator is gpu or cpu; got {accelerator!r}")
    if os.geteuid() or shutil.which("debootstrap") is None:
        raise UsageError("this needs root, and Debian's package debootstrap: install it, and run this with sudo")
    told = {"ACCELERATOR": accelerator}
    for text in build_arg or ():
        name, mark, value = text.partition("=")
        if not mark:
            raise UsageError(f"--build-arg wants NAME=VALUE; got {text!r}")
        told[name] = value
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        return _check(keep.resolve(), told, mirror)
    with tempfile.TemporaryDirectory(prefix="unmask-image-") as folder:
        return _check(Path(folder), told, mirror)


def _check(folder: Path, told: Mapping[str, str], mirror: str | None) -> None:
    found = stages((ROOT / "cluster/Dockerfile").read_text(encoding="utf-8"))
    made: dict[str, Root] = {}
    for number, stage in enumerate(found):
        name = stage.name or "image"
        made[name] = _stage(stage, folder / f"{number}-{name}", made, told, mirror)
    image = made["image"]
    for trial in _TRIALS:
        say(f"as uid {image.user}: {trial}")
        image.run(trial)
    say("The image's steps work, and so does what they make.")


def _stage(stage: Stage, path: Path, made: dict[str, Root], told: Mapping[str, str], mirror: str | None) -> Root:
    root = Root(path)
    if stage.base in made:
        base = made[stage.base]
        subprocess.run(["cp", "-a", "--reflink=auto", base.path, path], check=True)
        root.env = dict(base.env)
    elif stage.base == _BASE:
        _debootstrap(path, mirror)
    else:
        raise UsageError(f"the Dockerfile begins with {stage.base}; this makes {_BASE} alone")
    for instruction in stage.instructions:
        started = time.monotonic()
        say(f"{stage.name or 'image'}: {instruction.name} {instruction.text}")
        _do(root, instruction, made, told)
        if instruction.name in ("RUN", "COPY"):
            say(f"  {time.monotonic() - started:.1f} s")
    return root


def _do(root: Root, instruction: Instruction, made: dict[str, Root], told: Mapping[str, str]) -> None:
    variables = {**root.arguments, **root.env}
    match instruction.name:
        case "RUN":
            root.run(instruction.text)
        case "COPY":
            root.copy(instruction, ROOT, made)
        case "ENV":
            root.env |= pairs(instruction, variables)
        case "ARG":
            defaults = pairs(instruction, variables)
            root.arguments |= {name: told.get(name, value) for name, value in defaults.items()}
        case "USER":
            root.user = instruction.text
        case "WORKDIR":
            root.folder = instruction.text
            (root.path / instruction.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case _:  # of no matter before the container runs
            pass


def _debootstrap(path: Path, mirror: str | None) -> None:
    subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(path), *([mirror] if mirror else [])],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    for name in _HOST_FILES:
        if Path(name).exists():
            shutil.copyfile(name, path / name.lstrip("/"))
    if _CERTIFICATES.exists():
        (path / _COPY.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_CERTIFICATES, path / _COPY.lstrip("/"))


def main() -> None:
    """Entry point of `python -m cluster.check_image`."""
    console.run(app, "python -m cluster.check_image", sys.argv[1:])


if __name__ == "__main__":
    main()
