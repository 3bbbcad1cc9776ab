"""From what a user calls a model to a model: a checkpoint, a preset of one of the systems, or any timm backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from unmask import __version__
from unmask.backbones import close_matches
from unmask.checkpoints import Description, digest, load
from unmask.errors import ModelError, Reason, UsageError
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.transforms import MARGINS, Preprocessing

__all__ = ["DEFAULT_MODEL", "PRESETS", "WEIGHTS_DIR", "Preset", "described", "resolve"]

DEFAULT_MODEL = "unmask-small"
"""The detector that comes with Unmask; `unmask model-card` says how far it can be trusted."""

WEIGHTS_DIR = Path(__file__).parent / "weights"
"""Where checkpoints lie that come with Unmask: NAME.safetensors."""

_SMALL = "mobilenetv3_small_100"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """An architecture with its preprocessing, before any training."""

    config: ModelConfig
    """The architecture."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """Where it differs from what the backbone was trained with, and from the defaults."""
    pretrained: bool = True
    """Whether to take timm's weights for the backbone unless told otherwise."""


PRESETS: Mapping[str, Preset] = {
    "mobilenetv3-small": Preset(config=ModelConfig(backbone=_SMALL), pretrained=False),
    "mobilenetv3-small-temporal": Preset(
        config=ModelConfig(backbone=_SMALL, head="temporal", dropout=0.1), pretrained=False
    ),
    # S1
    "celebdf-mobilenet": Preset(
        config=ModelConfig(backbone=_SMALL, head="mobilenet", dropout=0.2),
        preprocessing={"margin": MARGINS["none"], "fit": "stretch", "interpolation": "bilinear"},
    ),
    # S2 and S3, at 380 px; the stochastic depth is the winner's code's.
    "dfdc-b7": Preset(
        config=ModelConfig(backbone="tf_efficientnet_b7.ns_jft_in1k", drop_path=0.2),
        preprocessing={"size_px": 380, "margin": MARGINS["third"], "fit": "pad"},
    ),
    # S0, with the clips of 5 frames that its authors trained on.
    "dfgc-convnext": Preset(
        config=ModelConfig(
            backbone="convnext_xlarge.fb_in22k_ft_in1k_384", head="temporal", dropout=0.1, window=5
        ),
        preprocessing={"margin": MARGINS["dfgc"], "fit": "stretch"},
    ),
    "dfgc-eva": Preset(
        config=ModelConfig(
            backbone="eva_large_patch14_336.in22k_ft_in22k_in1k", head="temporal", dropout=0.1, window=5
        ),
        preprocessing={"margin": MARGINS["dfgc"], "fit": "stretch"},
    ),
}  # fmt: skip


def resolve(
    name_or_path: str | Path = DEFAULT_MODEL,
    *,
    device: torch.device | str = "cpu",
    pretrained: bool | None = None,
    weights: Path | None = None,
) -> tuple[ForgeryModel, Description]:
    """The model that a user means, ready to score.

    Args:
        name_or_path: A checkpoint's path; the name of one that comes with Unmask; a preset; or any timm backbone,
            which gets a frame head.
        device: Where it shall run.
        pretrained: Take the backbone's weights from timm, or do not. Left open, the preset decides; a backbone named
            directly takes them.
        weights: Take them from this file instead.

    Returns:
        The model, and its description. A model that was built rather than loaded is not trained, and says so.

    Raises:
        ModelError: Nothing is called that (`UNKNOWN_MODEL`, with the closest names); the checkpoint or the weights
            cannot be had or trusted.
        UsageError: Options that do not go with a checkpoint.
    """
    if weights is not None and pretrained:
        raise UsageError("--weights and --pretrained exclude each other; give one of them.")
    checkpoint = _checkpoint(name_or_path)
    if checkpoint is not None:
        if weights is not None or pretrained is not None:
            raise UsageError(
                f"{name_or_path} is a checkpoint with weights of its own: leave out --weights and the like"
            )
        return load(checkpoint, device)
    name = str(name_or_path)
    preset = PRESETS.get(name) or _backbone_preset(name)
    fetch = preset.pretrained if pretrained is None else pretrained
    model = build(preset.config, pretrained=fetch, weights=weights)
    source = f"file {weights.name}" if weights else "timm" if fetch else "random, seed 0"
    description = _description(name, preset, source)
    return model.to(device), replace(description, sha256=digest(model.state_dict(), description))


def described(name_or_path: str | Path = DEFAULT_MODEL) -> Description:
    """What a model is. A preset or a backbone is described without fetching or making weights, so without a digest.

    Raises:
        ModelError: Nothing is called that, or the checkpoint cannot be had or trusted.
    """
    checkpoint = _checkpoint(name_or_path)
    if checkpoint is not None:
        return load(checkpoint)[1]
    name = str(name_or_path)
    preset = PRESETS.get(name) or _backbone_preset(name)
    return _description(name, preset, "timm" if preset.pretrained else "random, seed 0")


def _description(name: str, preset: Preset, weights: str) -> Description:
    return Description(
        name=name,
        version=__version__,
        config=preset.config,
        preprocessing=Preprocessing.for_backbone(preset.config.backbone, **preset.preprocessing),
        provenance={"weights": weights},
    )


def _checkpoint(name_or_path: str | Path) -> Path | None:
    """The checkpoint that is meant, whether it exists or not; None where a name is meant that no file has."""
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix == ".safetensors" or len(path.parts) > 1 or path.is_file():
        return path
    shipped = WEIGHTS_DIR / f"{name_or_path}.safetensors"
    return shipped if shipped.is_file() else None


def _backbone_preset(name: str) -> Preset:
    import timm

    if name and timm.is_model(name):
        return Preset(config=ModelConfig(backbone=name))
    shipped = (path.stem for path in WEIGHTS_DIR.glob("*.safetensors"))
    likely = ", ".join(close_matches(name, *PRESETS, *shipped)) or ", ".join(PRESETS)
    raise ModelError(
        Reason.UNKNOWN_MODEL,
        f"no model is called {name!r}: give a checkpoint's path, a preset or a timm backbone; the closest: {likely}",
    )
