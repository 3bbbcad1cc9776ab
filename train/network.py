"""The model as it is trained: from a batch to logits, in one forward pass that DDP can wrap.

Axes: B samples, T frames of a clip (1 for frames), M valid frames of a batch, H rows, W columns, D features.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from train.clips import Batch
from train.config import LoopConfig, OptimConfig, TrainConfig
from train.context import Context
from unmask.errors import UsageError
from unmask.models import ForgeryModel
from unmask.transforms import Preprocessing, normalised

Tensors = tuple[Tensor, ...] | list[Tensor]

__all__ = [
    "Network",
    "accumulating",
    "average",
    "describe_size",
    "optimiser",
    "prepared",
    "set_phase",
    "wrapped",
]


class Network(nn.Module):
    """Runs a model over batches of frames or clips. Frames that are not there pass no backbone.

    Args:
        model: The model.
        preprocessing: Its own: pixels are normalised on the device.
        channels_last: Memory format of its images in training, and on GPUs.
    """

    def __init__(self, model: ForgeryModel, preprocessing: Preprocessing, *, channels_last: bool = False) -> None:
        super().__init__()
        self.model = model
        self._preprocessing = preprocessing
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, pixels: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B,), or opinion scores; the features (M, D) of the valid frames, and where they were blended.

        The last is logits (M, h, w), from models with a pyramid while they are trained.

        Args:
            pixels: uint8 (B, T, H, W, 3), or features (B, T, D) that were kept.
            valid_BT: bool (B, T).
        """
        is_kept = pixels.ndim == 3
        inputs = pixels[valid_BT]
        features_MD, where_Mhw = (inputs.float(), None) if is_kept else self._features(inputs)
        if not self.model.is_temporal:
            return self.model.frame_logits(features_MD), features_MD, where_Mhw
        features_BTD = features_MD.new_zeros((*valid_BT.shape, features_MD.shape[-1]))
        features_BTD = features_BTD.masked_scatter(valid_BT[..., None], features_MD)
        return self.model.clip_logits(features_BTD, valid_BT), features_MD, where_Mhw

    def _features(self, pixels_MHWC: Tensor) -> tuple[Tensor, Tensor | None]:
        images = normalised(pixels_MHWC, self._preprocessing)
        if self.training or images.is_cuda:  # else as everywhere: channels-last on a CPU
            images = images.contiguous(memory_format=self._format)
        if self.training and self.model.config.pyramid:
            return self.model.located(images)
        return self.model.features(images), None

    def logits(self, batch: Batch, device: torch.device) -> Tensor:
        """Logits (B,) of a batch that lies anywhere."""
        outputs: tuple[Tensor, ...] = self(
            batch.pixels.to(device, non_blocking=True), batch.valid_BT.to(device, non_blocking=True)
        )
        return outputs[0]


def prepared(model: ForgeryModel, config: LoopConfig, device: torch.device) -> ForgeryModel:
    """The model on its device, in the form that a configuration asks for.

    Raises:
        UsageError: The backbone cannot compute its activations twice.
    """
    if config.checkpoint_activations:
        try:
            model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AssertionError, AttributeError, TypeError):
            raise UsageError(
                f"{model.config.backbone} cannot recompute activations: set loop.checkpoint_activations=false"
            ) from None
    if config.sync_bn and device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm

        # PyTorch's own would leave out the activations, which timm's BatchNorms apply too.
        model.backbone = convert_sync_batchnorm(model.backbone)  # type: ignore[no-untyped-call]
    memory = torch.channels_last if config.channels_last else torch.preserve_format
    return model.to(device, memory_format=memory)  # type: ignore[call-overload,no-any-return]


def set_phase(model: ForgeryModel, config: LoopConfig, epoch: int) -> None:
    """Freeze or unfreeze the backbone, as the epoch wants it."""
    if config.freeze == "none" or (config.unfreeze_after is not None and epoch >= config.unfreeze_after):
        model.unfreeze()
    else:
        model.freeze(except_layer_norm=config.freeze == "layer_norm")


def wrapped(network: Network, config: LoopConfig, context: Context) -> nn.Module:
    """The network with its gradients averaged over all workers, compiled where that is asked for."""
    if config.compile:
        network.model.backbone.compile()
    if context.workers == 1:
        return network
    ids = [context.device.index or 0] if context.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids)


@contextmanager
def accumulating(network: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Gradients of all but the last batch of a step stay on their worker: one all-reduce a step."""
    quiet = network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext()
    with quiet:
        yield


def average(network: Network, decay: float) -> AveragedModel:
    """An exponential moving average of the weights and of BatchNorm's statistics.

    The decay rises as (1 + n) / (10 + n) over the first n updates: with the full one from the beginning, the random
    weights at the start would weigh most for hundreds of updates.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        share = 1 - min(decay, (1 + n) / (10 + n))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), share)
            else:
                mean.copy_(value)

    return AveragedModel(network.model, multi_avg_fn=update, use_buffers=True)


def optimiser(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of all weights, frozen ones included, so that its state fits every phase.

    Biases and the weights of norms do not decay.
    """
    decaying: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decaying if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr)


def describe_size(config: TrainConfig, network: Network) -> str:
    """How much is trained, for people."""
    every = sum(p.numel() for p in network.model.parameters())
    trained = sum(p.numel() for p in network.model.parameters() if p.requires_grad)
    what = f"{config.model.backbone}, {config.model.head} head"
    return f"{what}: {every / 1e6:.2f} M weights, {trained / 1e6:.3f} M trained"
