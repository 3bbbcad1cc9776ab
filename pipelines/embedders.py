"""The networks whose features are kept: any backbone that Unmask can load, and facenet-pytorch's face encodings.

Axes: N crops, D features, H rows, W columns.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config import FACENET, EmbedOptions, digest
from unmask.backbones import read_tensors
from unmask.checkpoints import Description
from unmask.errors import ModelError, Reason
from unmask.models import ForgeryModel
from unmask.presets import resolve
from unmask.transforms import Preprocessing, to_tensor

__all__ = ["EmbedPlan", "Embedder", "load", "plan"]

# What facenet-pytorch's own MTCNN feeds it: 160 px of the box with a small margin, (x - 127.5) / 128.
_FACENET_INPUT = Preprocessing(
    size_px=160, margin=1.1, fit="stretch", mean=(0.5,) * 3, std=(128 / 255,) * 3, interpolation="bilinear"
)
_FACENET_DIM = 512
_BATCH_FACES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedPlan:
    """What stages must know of a backbone before they meet it."""

    options: EmbedOptions
    preprocessing: Preprocessing
    dim: int
    sha256: str

    def key(self, shaping: Any) -> str:
        """Names its features by everything that shaped them.

        Args:
            shaping: What JSON can say of the frames and the detector.
        """
        said = {"weights": self.sha256, "preprocessing": self.preprocessing.to_json(), "dim": self.dim}
        return f"{Path(self.options.model).stem}-{digest([said, shaping])}"


@dataclass(frozen=True, slots=True, eq=False)
class Embedder:
    """A network that is ready to see crops."""

    plan: EmbedPlan
    device: torch.device
    network: Callable[[Tensor], Tensor]
    model: ForgeryModel | None = None
    description: Description | None = None

    @torch.inference_mode()
    def features(self, inputs: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """One float32 (D,) for each input uint8 (H, W, 3), which already has the network's size."""
        parts: list[NDArray[np.float32]] = []
        for start in range(0, len(inputs), _BATCH_FACES):
            tensors_N3HW = to_tensor(inputs[start : start + _BATCH_FACES], self.plan.preprocessing, self.device)
            parts.extend(self.network(tensors_N3HW).float().cpu().numpy())
        return parts


def load(options: EmbedOptions, device: torch.device) -> Embedder:
    """Load a network.

    Args:
        options: Which, and its weights.
        device: Where it shall run.

    Raises:
        ModelError: It cannot be had or trusted, or its weights are not those that the run began with.
    """
    embedder = _facenet(options, device) if options.model == FACENET else _backbone(options, device)
    if options.sha256 and options.sha256 != embedder.plan.sha256:
        raise ModelError(
            Reason.CHECKPOINT_HASH,
            f"{options.model} has other weights than when the run began; put those back, or choose another --out",
        )
    return embedder


def plan(options: EmbedOptions, *, to_judge: bool = False) -> EmbedPlan:
    """Load a network once to see that it can be had, and give what it is.

    Args:
        options: Which.
        to_judge: It shall score videos.

    Raises:
        ModelError: As `load` does, or it is no detector.
    """
    found = load(options, torch.device("cpu"))
    if to_judge and found.description is not None:
        found.description.check_detects()
    return replace(found.plan, options=replace(options, sha256=found.plan.sha256))


def _backbone(options: EmbedOptions, device: torch.device) -> Embedder:
    weights = Path(options.weights) if options.weights else None
    model, description = resolve(options.model, device=device, weights=weights, pretrained=options.pretrained)
    model.eval()
    known = EmbedPlan(
        options=options, preprocessing=description.preprocessing, dim=model.dim, sha256=description.sha256
    )
    return Embedder(known, device, model.features, model, description)


def _facenet(options: EmbedOptions, device: torch.device) -> Embedder:
    from facenet_pytorch import InceptionResnetV1

    if options.weights:
        network = InceptionResnetV1(classify=False)
        tensors = {k: v for k, v in read_tensors(Path(options.weights)).items() if not k.startswith("logits.")}
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise ModelError(
                Reason.CHECKPOINT_CORRUPT, f"{options.weights} holds no weights of InceptionResnetV1 ({first[:120]})"
            ) from None
    elif options.pretrained is False:
        torch.manual_seed(0)
        network = InceptionResnetV1(classify=False)
    else:
        try:
            network = InceptionResnetV1(pretrained="vggface2")
        except OSError as error:
            raise ModelError(
                Reason.PRETRAINED_UNAVAILABLE,
                f"The weights of {FACENET} cannot be downloaded ({error}); give --weights {FACENET}=FILE",
            ) from None
    network.eval().to(device)
    known = EmbedPlan(
        options=options, preprocessing=_FACENET_INPUT, dim=_FACENET_DIM, sha256=_digest(network.state_dict())
    )
    return Embedder(known, device, network)


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
