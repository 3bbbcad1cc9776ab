"""timm's backbones by name, and the weights that come from outside: from the hub, or from a file.

timm takes seconds to import: it is imported where it is needed. Nothing is unpickled.
"""

import difflib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unmask.errors import ModelError, Reason
from unmask.pyramid import Pyramid

__all__ = ["close_matches", "create_backbone", "data_config", "hub_reachable", "load_weights", "read_tensors"]

_log = logging.getLogger(__name__)

_REACH_TIMEOUT_S = 3.0
_REMEDY = (
    "give the weights with --weights FILE, or go without them with --no-pretrained (in training --set weights=FILE, or "
    "--set pretrained=false)"
)
# What timm's hub files are called (`hf_hub_filename` overrules).
_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors")
# Under these, published detectors keep their backbone: ours, and the DFDC winner's.
_BACKBONE_PREFIXES = ("backbone.", "encoder.")
_HEAD_PREFIX = "head."
_INNER_PREFIX, _JOINING = "inner.", "laterals."  # of a pyramid


def close_matches(name: str, *more: str) -> list[str]:
    """Up to three names like this one, among timm's and the given ones."""
    import timm

    return difflib.get_close_matches(name, [*more, *timm.list_models()], n=3, cutoff=0.5)


def data_config(name: str) -> dict[str, Any]:
    """What timm says of a backbone's input: `input_size` (C, H, W), `mean`, `std`, `interpolation`.

    Raises:
        ModelError: timm knows no such backbone.
    """
    import timm
    from timm.data.config import resolve_data_config

    _check_name(name)
    found = timm.get_pretrained_cfg(name)
    known: dict[str, Any] = found.to_dict() if found else {}  # type: ignore[no-untyped-call]
    config: dict[str, Any] = resolve_data_config({}, known)  # type: ignore[no-untyped-call]
    return config


def create_backbone(name: str, *, pretrained: bool, drop_path: float = 0.0) -> nn.Module:
    """A timm backbone without its classifier: images in, pooled features (N, D) out.

    Args:
        name: Name in timm, with or without a tag.
        pretrained: Fetch its weights: from the local cache without the network, else from the hub.
        drop_path: Rate of stochastic depth in training.

    Raises:
        ModelError: timm knows no such backbone; the weights cannot be had; it takes no stochastic depth.
    """
    import timm

    _check_name(name)
    options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if pretrained:
        options["pretrained_cfg_overlay"] = _source(name)
    try:
        backbone: nn.Module = timm.create_model(name, **options)
    except TypeError as error:
        if not drop_path:
            raise
        raise ModelError(Reason.BAD_OPTION, f"the backbone {name} takes no drop_path ({drop_path}): set 0") from error
    except Exception as error:  # whatever the hub, the network or the file say
        if not pretrained:
            raise
        _log.info("pretrained weights of %s: %r", name, error)
        raise _unavailable(name, type(error).__name__) from error
    return backbone


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file: safetensors, or what `torch.load` reads without unpickling.

    Tensors are looked for under `state_dict` or `model`; a `module.` before every name (DDP) is taken off.

    Raises:
        ModelError: There is no such file, or it holds no tensors that can be read safely.
    """
    if not path.is_file():
        raise ModelError(Reason.MISSING_FILE, f"no weights file {path}: check the path")
    try:
        loaded = _read(path)
    except Exception as e:  # a damaged file may trip the readers anywhere
        raise ModelError(
            Reason.CHECKPOINT_CORRUPT,
            f"{path} is no weights file that can be read without unpickling ({type(e).__name__}): "
            "fetch it again, or convert it to safetensors",
        ) from e
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise ModelError(Reason.CHECKPOINT_CORRUPT, f"{path} holds no named tensors: give a state dict")
    if all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


def load_weights(backbone: nn.Module, head: nn.Module, path: Path) -> bool:
    """Load a file's tensors into a backbone, all of them, and into a head where the file has one that fits.

    Args:
        backbone: As `create_backbone` makes it, or a pyramid on it. A pyramid takes another pyramid's tensors, or those
            of a whole backbone, of which it leaves out what lies behind its maps. One that is cut takes what it
            has of a whole one.
        head: The head on it. A linear one also takes `fc.weight` and `fc.bias` of the DFDC winner's files.
        path: See `read_tensors`. Names are timm's, alone or under `backbone.` or `encoder.`; or those of
            `efficientnet_pytorch` and of the originals that timm converts (CLIP, EVA, ConvNeXt).

    Returns:
        Whether the head came from the file too. A head or classifier of another shape is left out, and logged.

    Raises:
        ModelError: The file cannot be read, or lacks tensors of the backbone, or belongs to another architecture.
    """
    backbone_tensors, head_tensors = _divided(read_tensors(path))
    if isinstance(backbone, Pyramid) and backbone.is_cut:
        known = backbone.state_dict()
        cut = {k: v for k, v in backbone_tensors.items() if k in known or not k.startswith((_INNER_PREFIX, _JOINING))}
        head_tensors = head_tensors if len(cut) == len(backbone_tensors) else {}  # that one knows other maps
        backbone_tensors = cut
    is_whole = isinstance(backbone, Pyramid) and not any(k.startswith(_INNER_PREFIX) for k in backbone_tensors)
    if is_whole:
        backbone = cast("Pyramid", backbone).inner
    expected = backbone.state_dict()
    if _misfits(backbone_tensors, expected):
        backbone_tensors = _converted(backbone_tensors, backbone)
    misfits = _misfits(backbone_tensors, expected)
    classifier = _classifier_prefixes(backbone)
    if not is_whole:
        misfits += [k for k in backbone_tensors if k not in expected and not k.startswith(classifier)]
    if misfits:
        raise ModelError(
            Reason.BAD_OPTION,
            f"{path} does not fit the backbone: {len(misfits)} tensors are missing, foreign or of another shape "
            f"(first: {misfits[0]}); give weights of the same architecture",
        )
    backbone.load_state_dict({k: backbone_tensors[k] for k in expected})
    has_head = bool(head_tensors) and not _misfits(head_tensors, head.state_dict())
    if has_head:
        head.load_state_dict({k: head_tensors[k] for k in head.state_dict()})
    else:
        _log.info("%s holds no head that fits: the head keeps its random weights", path)
    return has_head


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name):
        likely = ", ".join(close_matches(name)) or "see timm.list_models()"
        raise ModelError(Reason.UNKNOWN_MODEL, f"no backbone is called {name!r}; the closest: {likely}")


def _source(name: str) -> dict[str, Any]:
    """Where to take weights from, without a wait where there is no way: an overlay of timm's configuration."""
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    repository = config.hf_hub_id if config else None
    if config is None or not config.has_weights:
        raise _unavailable(name, "timm has none")
    for file in (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES:
        cached = try_to_load_from_cache(repository, file) if repository else None
        if isinstance(cached, str):
            return {"file": cached}
    if repository and (constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT)):
        raise _unavailable(name, f"not in the cache, and {constants.ENDPOINT} cannot be reached")
    return {}


def hub_reachable() -> bool:
    """Whether the hub of weights may be asked, and answers at all."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _reachable(constants.ENDPOINT)


def _reachable(url: str) -> bool:
    """Whether a host answers at all. The hub's own client would retry for most of a minute."""
    import httpx

    try:
        httpx.head(url, timeout=_REACH_TIMEOUT_S)
    except (httpx.HTTPError, OSError):
        return False
    return True


def _unavailable(name: str, cause: str) -> ModelError:
    return ModelError(Reason.PRETRAINED_UNAVAILABLE, f"no pretrained weights for {name} ({cause}): {_REMEDY}")


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _divided(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the backbone, and of the head, under the names that each of the two modules uses."""
    for prefix in _BACKBONE_PREFIXES:
        backbone = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if backbone:
            rest = {k.removeprefix(_HEAD_PREFIX): v for k, v in tensors.items() if not k.startswith(prefix)}
            return backbone, rest
    return dict(tensors), {}


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [k for k, v in expected.items() if k not in tensors or tensors[k].shape != v.shape]


def _converted(tensors: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Translate an architecture's original weights: EfficientNets here, others (CLIP, EVA, ConvNeXt) by timm."""
    if all(name.startswith("_") for name in tensors):
        # `efficientnet_pytorch` has other names for the same tensors in the same order.
        return dict(zip(backbone.state_dict(), tensors.values(), strict=False))
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        converted: dict[str, Tensor] = convert(dict(tensors), backbone)
    except (KeyError, AttributeError, RuntimeError, ValueError, TypeError, IndexError) as error:
        _log.info("not converted: %r", error)
        return tensors
    return converted


def _classifier_prefixes(backbone: nn.Module) -> tuple[str, ...]:
    """Under which names timm keeps what `num_classes=0` leaves out."""
    names = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    # A classifier with a norm of its own (RepViT: head.head.l beside head.head.bn) goes as a whole.
    return tuple((n.rsplit(".", 1)[0] if n.count(".") > 1 else n) + "." for n in names)
