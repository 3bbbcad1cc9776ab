"""What a service is told at its start, by `unmask serve`, `serve run serve.app:build KEY=VALUE` or a config file.

A pydantic model, since Ray Serve reads one from texts. Imports no PyTorch: the door does not need it.
"""

import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unmask.errors import UsageError

__all__ = ["LOOPBACK", "SCORER", "Settings", "key_digests", "settings_from"]

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts that only this machine reaches."""

SCORER = "scorer"
"""Name of the scorer's deployment."""

_LEAST_KEY = 16


class Settings(BaseModel):
    """Everything that can be set. Refuses what cannot be meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    host: str = Field("127.0.0.1", description="Address to listen at.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen at.")
    model: str = Field("", description="A checkpoint's path, a preset or a timm backbone; Unmask's own where empty.")
    models: dict[str, str] = Field(default_factory=dict, description="More models, by the name that callers use.")
    device: str = Field("auto", description="auto, cpu or cuda.")
    aggregation: str = Field("confident", description="How frames make a track's score: confident, mean or max.")
    state: Path = Field(Path("unmask-state"), description="Folder of the store and of uploads that wait.")

    max_streams: int = Field(16, ge=1, le=4096, description="Streams, sockets included, that may run at once.")
    hosts: int = Field(2, ge=1, le=64, description="Processes that hold streams; with one, a crash costs its restart.")
    analysts: int = Field(1, ge=0, le=64, description="Uploads analysed at once.")
    scorers: int = Field(1, ge=1, le=64, description="Scorers at the least; with one, its death costs its restart.")
    max_scorers: int = Field(4, ge=1, le=64, description="Scorers at the most.")
    scorer_cpus: float = Field(0.5, ge=0, description="CPUs that each scorer holds.")
    scorer_gpus: float | None = Field(
        None, ge=0, description="GPUs, or the share of one, of each; half of one with --device cuda."
    )
    batch_frames: int = Field(16, ge=1, le=256, description="Faces that a scorer takes at once.")
    detect: Literal["auto", "session", "scorer"] = Field(
        "auto", description="Where faces are found: beside the stream, or by the scorer (on a GPU)."
    )

    api_key_file: Path | None = Field(None, description="Keys, one a line. Required unless only this machine can call.")
    allow_private: bool = Field(False, description="Whether URLs and streams may lead into private networks.")
    callback_secret_file: Path | None = Field(None, description="Signs callbacks; one is made in the state's folder.")
    max_upload_mb: int = Field(1024, ge=1, description="Larger uploads and downloads are refused.")
    max_duration_s: float = Field(3600.0, gt=0, description="Longer videos are refused.")
    max_megapixels: float = Field(36.0, gt=0, description="Larger pictures are refused.")
    max_waiting: int = Field(32, ge=1, description="Analyses that may wait; the next is told to come again.")
    silence_s: float = Field(180.0, gt=0, description="An analysis that shows no progress for so long is ended.")
    keep_events_h: float = Field(24.0, gt=0, description="How long events are kept; of one stream, 20,000 at most.")
    keep_analyses_h: float = Field(168.0, gt=0, description="How long results are kept.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.max_scorers < self.scorers:
            raise ValueError(f"max_scorers ({self.max_scorers}) is below scorers ({self.scorers})")
        if "default" in self.models:
            raise ValueError("the model called default is the one of --model; choose another name")
        return self

    @property
    def is_open(self) -> bool:
        """Whether anybody who reaches the service may use it."""
        return self.api_key_file is None

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload_mb` in bytes."""
        return self.max_upload_mb * 2**20

    @property
    def on_gpu(self) -> bool:
        """Whether scorers want a GPU by what is set (`auto` counts where a share is given)."""
        return self.device.startswith("cuda") or bool(self.scorer_gpus)

    def named_models(self) -> dict[str, str]:
        """All models by the names that callers use."""
        return {"default": self.model, **self.models}

    def check_door(self) -> None:
        """See that no stranger gets in by default.

        Raises:
            UsageError: It would listen for other machines without a key.
        """
        if self.is_open and self.host not in LOOPBACK:
            raise UsageError(
                f"--host {self.host} lets other machines in: give --api-key-file with a key that they must know, "
                "or listen at 127.0.0.1"
            )

    def callback_secret(self) -> bytes:
        """What callbacks are signed with: of the file that is set, or one that is made once.

        Raises:
            UsageError: The file cannot be read, or is empty.
        """
        path = self.callback_secret_file or self.state / "callback.secret"
        try:
            if self.callback_secret_file is None and not path.exists():
                path.touch(mode=0o600)
                path.write_text(secrets.token_urlsafe(32) + "\n")
            found = path.read_bytes().strip()
        except OSError as error:
            raise UsageError(f"the secret of callbacks {path} cannot be read ({error.strerror}); check it") from None
        if len(found) < _LEAST_KEY:
            raise UsageError(f"the secret of callbacks {path} needs at least {_LEAST_KEY} characters")
        return found


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings, with a faulty value as one sentence.

    Raises:
        UsageError: A value is unknown or out of its range.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        option = f"--{name.replace('_', '-')}: " if name else ""
        raise UsageError(f"{option}{said[:1].lower()}{said[1:]}") from None


def key_digests(path: Path | None) -> frozenset[str]:
    """The SHA-256 of each key in a file, so that no process holds the keys; lines that begin with # are comments.

    Raises:
        UsageError: The file cannot be read, holds no key or a short one.
    """
    if path is None:
        return frozenset()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path} cannot be read ({error}); check it") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or min(map(len, keys)) < _LEAST_KEY:
        raise UsageError(f"--api-key-file {path} needs keys of at least {_LEAST_KEY} characters, one a line")
    return frozenset(hashlib.sha256(key.encode()).hexdigest() for key in keys)
