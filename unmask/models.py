"""The forgery model: a timm backbone that turns face crops into features, and a head that turns them into a logit.

Heads (a positive logit speaks for a manipulation):

    frame       dropout, Linear(D, 1). On EfficientNet-B7: the DFDC winner's head (S2)
    mobilenet   MobileNetV3's own hidden layer, dropout, Linear(1024, 1) (S1)
    temporal    mean and unbiased std over a clip's valid frames, dropout, 512, 256, 64, 1 (S0, DFGC-VRA 2023)
    l2          Linear(D, 1) on features of unit length (Yermakov et al. 2025, "Deepfake Detection that Generalizes
                Across Benchmarks"): no fixed scale, the length of the weights is learned
    fusion      RGB and depth of a clip with cross-attention, see `unmask.fusion`; one backbone sees both (S4)

Axes: N crops or frames, B clips, T frames of a clip, D features, S = 2 D statistics, H rows, W columns.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.backbones import create_backbone, load_weights
from unmask.errors import ModelError, Reason, UsageError
from unmask.fusion import FusionConfig, FusionHead
from unmask.pyramid import Pyramid
from unmask.window import mean_std

__all__ = ["ForgeryModel", "Head", "ModelConfig", "Task", "build"]

Head = Literal["frame", "mobilenet", "temporal", "l2", "fusion"]
Task = Literal["detection", "mos"]

_HIDDEN = (512, 256, 64)
_LONGEST_WINDOW = 1024
_STAGES = 3
# timm's MobileNetV3 holds torchvision's first classifier layer, Linear(576, 1024), as a 1 x 1 convolution after
# the pooling: the same arithmetic, but a part of the classifier when the backbone is frozen (S1).
_MOBILENET, _MOBILENET_HIDDEN = "mobilenetv3_", "conv_head."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """An architecture. Whether timm has the backbone is seen when the model is built: that needs timm's import.

    Raises:
        UsageError: A field is out of its range; the message says what to do.
    """

    backbone: str
    """Name in timm, with or without a tag."""
    head: Head = "frame"
    """See the module."""
    dropout: float = 0.0
    """Rate before the head's first linear layer."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the backbone, in training."""
    window: int = 16
    """T, the frames of a clip (temporal and fusion heads)."""
    pyramid: bool = False
    """Judge by the maps of three stages rather than by the last features; see `unmask.pyramid`. Not with mobilenet or
    fusion."""
    stages: int = 3
    """How many maps the pyramid joins, from the finest on; the backbone is cut behind the last."""
    task: Task = "detection"
    """What the output is: a logit for a manipulation, or the mean opinion score of a fake's quality (S0)."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Of the fusion head; its dropout is `dropout`."""

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, str) or not self.backbone:
            raise UsageError(f"backbone is the name of a timm model; got {self.backbone!r}")
        if self.head not in get_args(Head):
            raise UsageError(f"head is one of {', '.join(get_args(Head))}; got {self.head!r}")
        if type(self.pyramid) is not bool or (self.pyramid and self.head in ("mobilenet", "fusion")):
            raise UsageError(f"pyramid is true or false, and false with mobilenet and fusion; got {self.pyramid!r}")
        if type(self.stages) is not int or not (1 if self.pyramid else _STAGES) <= self.stages <= _STAGES:
            raise UsageError(f"stages is 1, 2 or 3, and less than 3 with a pyramid alone; got {self.stages!r}")
        if self.task not in get_args(Task) or (self.task == "mos" and self.head == "fusion"):
            raise UsageError(
                f"task is one of {', '.join(get_args(Task))}, and detection with fusion; got {self.task!r}"
            )
        if not isinstance(self.fusion, FusionConfig):
            raise UsageError(f"fusion is a group of fields; got {self.fusion!r}")
        if self.head == "mobilenet" and not self.backbone.startswith(_MOBILENET):
            raise UsageError(f"the mobilenet head belongs to {_MOBILENET}* backbones: give {self.backbone} head=frame")
        rates = (self.dropout, self.drop_path)
        if not all(isinstance(v, int | float) and math.isfinite(v) and 0.0 <= v < 1.0 for v in rates):
            raise UsageError(f"dropout and drop_path are rates in [0, 1); got {self.dropout} and {self.drop_path}")
        if type(self.window) is not int or not 1 <= self.window <= _LONGEST_WINDOW:
            raise UsageError(f"window is a number of frames, 1 to {_LONGEST_WINDOW}; got {self.window}")

    @property
    def takes_clips(self) -> bool:
        """Whether it judges clips of `window` frames rather than frames."""
        return self.head in ("temporal", "fusion")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON, without `fusion` and `stages` where they say nothing: digests of old stand."""
        left_out = {"fusion"} if self.head != "fusion" else set()
        left_out |= {"stages"} if self.stages == _STAGES else set()
        return {k: v for k, v in asdict(self).items() if k not in left_out}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The architecture that `to_json` gave.

        Raises:
            UsageError: A field is missing, unknown or out of range.
        """
        try:
            inner = {"fusion": FusionConfig(**plain["fusion"])} if "fusion" in plain else {}
            return cls(**{**plain, **inner})
        except TypeError as error:
            raise UsageError(f"not a description of a model: {error}") from error


class ForgeryModel(nn.Module):
    """A backbone and a head. Build it with `build`, or load it with `unmask.checkpoints.load`.

    Args:
        config: The architecture.
        backbone: Crops (N, 3, H, W) in, features (N, D) out.
        dim: D.
    """

    def __init__(self, config: ModelConfig, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.backbone = backbone
        self.head = _head(dim, config)
        self._frozen = False

    @property
    def is_temporal(self) -> bool:
        """Whether it judges clips (`clip_logits`) or frames (`frame_logits`)."""
        return self.config.takes_clips

    @property
    def frame_dim(self) -> int:
        """How many numbers it is told of a frame: D, or 2 D with a fusion head."""
        return 2 * self.dim if self.config.head == "fusion" else self.dim

    def features(self, crops_N3HW: Tensor) -> Tensor:
        """Pooled features (N, D) of normalised crops (N, 3, H, W).

        Raises:
            ModelError: The model judges crops with their depth: see `fused_features`.
        """
        if self.config.head == "fusion":
            raise ModelError(
                Reason.BAD_OPTION,
                "a model with the fusion head judges faces with their depth maps, and here are pictures alone: take "
                "another model, or unmask evaluate",
            )
        return self._pooled(crops_N3HW)

    def fused_features(self, crops_N3HW: Tensor, depths_N3HW: Tensor) -> Tensor:
        """Features (N, 2 D), for a fusion head, of normalised crops and of their depth maps in three channels."""
        return torch.cat([self._pooled(crops_N3HW), self._pooled(depths_N3HW)], 1)

    def _pooled(self, images_N3HW: Tensor) -> Tensor:
        features_ND: Tensor = self.backbone(images_N3HW)
        return self._checked(features_ND, len(images_N3HW))

    def located(self, crops_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """`features`, and logits (N, h, w) for what each place was blended in, from a model with a pyramid."""
        assert isinstance(self.backbone, Pyramid), "this model locates nothing"
        features_ND, where_Nhw = self.backbone.located(crops_N3HW)
        return self._checked(features_ND, len(crops_N3HW)), where_Nhw

    def _checked(self, features_ND: Tensor, count: int) -> Tensor:
        if features_ND.shape != (count, self.dim):
            raise ModelError(
                Reason.UNKNOWN_MODEL,
                f"the backbone {self.config.backbone} gives features of shape {tuple(features_ND.shape)}, not "
                f"(N, {self.dim}): choose one that pools",
            )
        return features_ND

    def frame_logits(self, features_ND: Tensor) -> Tensor:
        """Logits (N,) of frames, from a model that judges frames."""
        assert not self.is_temporal, "a temporal model judges clips"
        logits_N1: Tensor = self.head(features_ND)
        return logits_N1[:, 0]

    def clip_logits(self, features_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        """Logits (B,) of clips, from a temporal model or one with a fusion head (the second class over the first).

        A clip without a valid frame gets exactly 0, through which no gradient flows: it is no evidence. Finite
        features of valid frames give finite logits and gradients, for one frame too.

        Args:
            features_BTD: (B, T, D); (B, T, 2 D) for a fusion head.
            valid_BT: bool (B, T): which frames count.
        """
        if self.config.head == "fusion":
            classes_B2: Tensor = self.head(features_BTD, valid_BT)
            logits_B = classes_B2[:, 1] - classes_B2[:, 0]
        else:
            logits_B = self.window_logits(mean_std(features_BTD, valid_BT))
        return torch.where(valid_BT.any(1), logits_B, 0.0)

    def window_logits(self, statistics_BS: Tensor) -> Tensor:
        """Logits (B,) of windows, from their statistics (B, 2 D) as `unmask.window` gives them."""
        assert self.config.head == "temporal", "this model judges no statistics"
        logits_B1: Tensor = self.head(statistics_BS)
        return logits_B1[:, 0]

    def freeze(self, *, except_layer_norm: bool = False) -> None:
        """Train the head alone. The backbone stays in evaluation mode, so batch statistics stand still too.

        Args:
            except_layer_norm: Train the backbone's LayerNorms with it (LayerNorm tuning).

        Raises:
            UsageError: LayerNorm tuning of a backbone that has none.
        """
        norms = [m for m in self.backbone.modules() if isinstance(m, nn.LayerNorm)] if except_layer_norm else []
        if except_layer_norm and not norms:
            raise UsageError(f"{self.config.backbone} has no LayerNorm to tune: choose a transformer or a ConvNeXt")
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(self.config.head == "mobilenet" and name.startswith(_MOBILENET_HIDDEN))
        for norm in norms:
            norm.requires_grad_(True)
        self._frozen = True
        self.train(self.training)

    def unfreeze(self) -> None:
        """Train the whole model again."""
        self.backbone.requires_grad_(True)
        self._frozen = False
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self._frozen:
            self.backbone.eval()
        return self


class _LinearHead(nn.Module):
    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.normalises = config.head == "l2"
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(dim, 1)

    def forward(self, features_ND: Tensor) -> Tensor:
        features_ND = features_ND.to(self.fc.weight.dtype)
        if self.normalises:
            features_ND = F.normalize(features_ND, dim=-1)
        logits_N1: Tensor = self.fc(self.dropout(features_ND))
        return logits_N1


def _head(dim: int, config: ModelConfig) -> nn.Module:
    if config.head == "fusion":
        return FusionHead(dim, config.fusion, config.dropout)
    return _temporal_head(dim, config.dropout) if config.head == "temporal" else _LinearHead(dim, config)


def _temporal_head(dim: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(dropout)]
    sizes = (2 * dim, *_HIDDEN)
    for inputs, outputs in zip(sizes, _HIDDEN, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(_HIDDEN[-1], 1))


def build(config: ModelConfig, *, pretrained: bool = False, weights: Path | None = None, seed: int = 0) -> ForgeryModel:
    """Build a model on the CPU, in evaluation mode. The same arguments give the same weights.

    Args:
        config: The architecture.
        pretrained: Take the backbone's weights from timm.
        weights: Take them from this file instead, and the head's too where it has a head that fits.
        seed: Of the random weights of all that is not loaded. The global random state is left as it was.

    Raises:
        ModelError: No such backbone; weights that cannot be had, read or fitted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fetch = pretrained and weights is None
        backbone = create_backbone(config.backbone, pretrained=fetch, drop_path=config.drop_path)
        if config.pyramid:
            backbone = Pyramid(backbone, config.backbone, stages=config.stages)
        # What the classifier saw; MobileNets have a hidden layer between the last feature map and that.
        dim = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        assert isinstance(dim, int)
        model = ForgeryModel(config, backbone, dim)
        if weights is not None:
            load_weights(backbone, model.head, weights)
    return model.eval()
