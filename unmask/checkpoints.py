"""A checkpoint: one safetensors file with the tensors of a model and its description. Never pickle.

The description is JSON under the key `unmask` of the file's metadata: architecture, preprocessing, calibration,
provenance, whether the model was trained, and a sha256 over all that and every tensor. A checkpoint that is not whole
is not loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unmask import __version__
from unmask.atomic import replacing
from unmask.calibration import Calibration
from unmask.errors import ModelError, Reason, UsageError
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.records import ModelInfo
from unmask.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMAT", "Description", "describe", "digest", "load", "save"]

FORMAT = 1
"""The version of the file format that this code writes, and the only one it reads."""

_KEY = "unmask"
_FIELDS = {
    "format", "name", "version", "architecture", "preprocessing", "calibration", "trained", "provenance", "sha256"
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a checkpoint says of itself."""

    name: str
    """What to call the model in results."""
    version: str
    """Of the model, not of Unmask."""
    config: ModelConfig
    """The architecture."""
    preprocessing: Preprocessing
    """What everything that feeds the model must do."""
    calibration: Calibration = field(default_factory=Calibration)
    """How its logits are read."""
    trained: bool = False
    """Whether it was trained to tell fakes from real faces. A score of one that was not says nothing."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Anything that JSON can say: data, recipe, date, metrics, where the weights came from."""
    sha256: str = ""
    """Digest of the description and the tensors; see `digest`."""

    def info(self) -> ModelInfo:
        """The short form that results carry."""
        return ModelInfo(self.name, self.version, self.sha256, self.trained)

    def check_detects(self) -> None:
        """See that the model tells fakes from real faces, and nothing else.

        Raises:
            ModelError: It predicts opinion scores, or wants depth maps beside the pictures.
        """
        if self.config.head == "fusion":
            raise ModelError(
                Reason.BAD_OPTION,
                f"{self.name} judges faces with their depth maps, and here are pictures alone: take another model, or "
                "see what it says with unmask evaluate",
            )
        if self.config.task != "detection":
            raise ModelError(
                Reason.BAD_OPTION,
                f"{self.name} predicts how real people find a fake, not whether it is one: score with a detector, or "
                "see what it says with unmask evaluate",
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "architecture": self.config.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "calibration": self.calibration.to_json(),
            "trained": self.trained,
            "provenance": dict(self.provenance),
            "sha256": self.sha256,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Description":
        """The description that `to_json` gave.

        Raises:
            UsageError: A field is missing, unknown, of the wrong type or out of range.
        """
        texts = [plain.get(k) for k in ("name", "version", "sha256")]
        objects = [plain.get(k) for k in ("architecture", "preprocessing", "calibration", "provenance")]
        if set(plain) != _FIELDS:
            raise UsageError(f"a description's fields are {', '.join(sorted(_FIELDS))}; got {', '.join(sorted(plain))}")
        if not all(isinstance(v, str) for v in texts) or not all(isinstance(v, dict) for v in objects):
            raise UsageError("a description has texts for name, version and sha256, and objects for the rest")
        if not isinstance(plain["trained"], bool):
            raise UsageError(f"a description says in true or false whether a model was trained; got {plain['trained']}")
        return cls(
            name=plain["name"],
            version=plain["version"],
            config=ModelConfig.from_json(plain["architecture"]),
            preprocessing=Preprocessing.from_json(plain["preprocessing"]),
            calibration=Calibration.from_json(plain["calibration"]),
            trained=plain["trained"],
            provenance=plain["provenance"],
            sha256=plain["sha256"],
        )


def digest(tensors: Mapping[str, "Tensor"], description: Description) -> str:
    """The sha256 of a description (without its own digest) and of tensors, as 64 hexadecimal digits.

    It covers the canonical JSON of the one, and name, type, shape and bytes of the others, sorted by name. It does
    not depend on how a file lays them out.
    """
    plain = description.to_json()
    del plain["sha256"]
    sha = hashlib.sha256(_canonical(plain).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # Each header ends at its newline, and says how many bytes follow: no two models share a stream.
        sha.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        if tensor.numel():
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save(path: Path, model: ForgeryModel, description: Description, *, half: bool = False) -> Description:
    """Write a checkpoint, whole or not at all: beside its place, then moved there.

    `load` gives a model in single precision whatever the file has.

    Args:
        path: Where; it ends in `.safetensors`. A file that is there is replaced.
        model: On any device.
        description: Its architecture is the model's.
        half: Keep matrices and kernels as float16, for half the size: to be measured after, since each weight moves by
            up to 0.05%. Biases and the statistics of norms stay as they are.

    Returns:
        The description with its digest.

    Raises:
        UsageError: The description belongs to another architecture or is no JSON; the place cannot be written.
        ModelError: The model holds numbers that are not finite: its training diverged.
    """
    if description.config != model.config:
        raise UsageError(f"the description is of {description.config}, the model is {model.config}")
    if path.suffix != ".safetensors":
        raise UsageError(f"a checkpoint's name ends in .safetensors; got {path}")
    # Clones, since safetensors refuses tensors that share memory.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    if half:
        tensors = {k: v.half() if v.ndim > 1 and v.is_floating_point() else v for k, v in tensors.items()}
    if bad := _not_finite(tensors):
        raise ModelError(Reason.BAD_OPTION, f"{bad} is not finite, so {path} was not written: training diverged")
    try:
        described = replace(description, sha256=digest(tensors, description))
        text = _canonical(described.to_json())
    except (TypeError, ValueError) as error:
        raise UsageError(f"the provenance is not JSON: {error}") from error
    try:
        with replacing(path) as beside:
            save_file(tensors, beside, {_KEY: text})
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    return described


def describe(path: Path) -> Description:
    """Read a checkpoint's description alone, in milliseconds. The digest is not checked.

    Raises:
        ModelError: See `load`.
    """
    try:
        with _opened(path) as file:
            return _description(path, file.metadata())
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def load(path: Path, device: torch.device | str = "cpu") -> tuple[ForgeryModel, Description]:
    """Load a checkpoint, strictly, in evaluation mode.

    Raises:
        ModelError: There is no such file (`MISSING_FILE`); it is damaged, cut short or no checkpoint of Unmask, or its
            tensors do not belong to its architecture (`CHECKPOINT_CORRUPT`); its format is unknown
            (`CHECKPOINT_VERSION`); its digest is wrong (`CHECKPOINT_HASH`); timm lacks its backbone (`UNKNOWN_MODEL`).
    """
    try:
        with _opened(path) as file:
            description = _description(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if digest(tensors, description) != description.sha256:
        raise ModelError(
            Reason.CHECKPOINT_HASH,
            f"the checkpoint {path} was changed after it was written (its sha256 is wrong): fetch it again",
        )
    if bad := _not_finite(tensors):
        raise ModelError(Reason.CHECKPOINT_CORRUPT, f"the checkpoint {path} is unusable: {bad} is not finite")
    model = build(description.config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            Reason.CHECKPOINT_CORRUPT, f"the tensors of {path} do not belong to a {description.config.backbone}: "
            "it was written with another timm or by hand; train or convert it again",
        ) from error  # fmt: skip
    return model.to(device), description


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(Reason.MISSING_FILE, f"no checkpoint {path}: check the path")
    return safe_open(path, framework="pt", device="cpu")


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        Reason.CHECKPOINT_CORRUPT,
        f"{path} is cut short, damaged or no checkpoint ({error}): fetch it again; plain weights go with --weights",
    )


def _description(path: Path, metadata: Mapping[str, str] | None) -> Description:
    if not metadata or _KEY not in metadata:
        raise ModelError(
            Reason.CHECKPOINT_CORRUPT,
            f"{path} is no checkpoint of Unmask: it has no description; name a backbone and give it with --weights",
        )
    try:
        plain = json.loads(metadata[_KEY])
        version = plain["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(Reason.CHECKPOINT_CORRUPT, f"{path} has a damaged description: fetch it again") from error
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        remedy = "a newer Unmask wrote it: upgrade" if newer else "fetch it again"
        raise ModelError(
            Reason.CHECKPOINT_VERSION,
            f"{path} has the checkpoint format {version!r}, and Unmask {__version__} reads {FORMAT}: {remedy}",
        )
    try:
        return Description.from_json(plain)
    except UsageError as error:
        raise ModelError(Reason.CHECKPOINT_CORRUPT, f"{path} has a faulty description: {error}") from error


def _not_finite(tensors: Mapping[str, "Tensor"]) -> str | None:
    """Name of a tensor that holds NaN or infinity."""
    return next((k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)


def _canonical(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
