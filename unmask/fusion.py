"""RGB and depth with cross-attention (system S4): two streams of features of the same faces, joined over time.

Each stream gets sinusoidal positions (Vaswani et al. 2017) and an encoder of pre-norm transformer layers; then each
asks the other by cross-attention. Both are joined frame by frame, and the mean and the maximum over a clip's valid
frames give two classes. Frames that are not valid are neither asked nor pooled: what stands there changes nothing.

Axes: B clips, T frames of a clip (Q those that ask, K those that are asked), D features of a stream, E = 2 D features
of a frame (RGB, then depth), A attention heads, F features of one of them.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import UsageError

__all__ = ["Cross", "FusionConfig", "FusionHead", "Streams", "positions"]

Streams = Literal["both", "rgb", "depth"]
Cross = Literal["both", "rgb", "depth", "none"]

_SLOWEST = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """The size of the joining network, and what is left out of it in ablations.

    Raises:
        UsageError: A field is out of its range; the message says what to do.
    """

    streams: Streams = "both"
    """Which features are looked at: both, RGB alone or depth alone."""
    cross: Cross = "both"
    """Which stream asks the other: both, RGB asks depth, depth asks RGB, or none (concatenation)."""
    residuals: bool = True
    """Whether an answer of cross-attention is added to what asked, or stands in its place."""
    layers: int = 4
    """Of each stream's encoder."""
    heads: int = 6
    """Of every attention; they divide D."""
    hidden: int = 2048
    """Width of the layers' inner part."""

    def __post_init__(self) -> None:
        for name, kind in (("streams", Streams), ("cross", Cross)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"fusion.{name} is one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        if type(self.residuals) is not bool:
            raise UsageError(f"fusion.residuals is true or false; got {self.residuals!r}")
        for name, least in (("layers", 0), ("heads", 1), ("hidden", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UsageError(f"fusion.{name} is a number of {least} or more; got {value!r}")


class FusionHead(nn.Module):
    """Features of clips in, two classes out: authentic, manipulated.

    Args:
        dim: D.
        config: Size, and ablations.
        dropout: Rate in the encoders, in training.

    Raises:
        UsageError: D cannot be divided among the attention heads.
    """

    def __init__(self, dim: int, config: FusionConfig, dropout: float) -> None:
        super().__init__()
        if dim % config.heads:
            raise UsageError(f"fusion.heads={config.heads} does not divide the backbone's {dim} features: change it")
        self.config, self.dim = config, dim
        names: tuple[str, ...] = ("rgb", "depth") if config.streams == "both" else (config.streams,)
        self.encoders = nn.ModuleDict({name: _Encoder(dim, config, dropout) for name in names})
        asking: tuple[str, ...] = names if config.cross == "both" else (config.cross,)
        if len(names) == 1 or config.cross == "none":
            asking = ()
        self.crosses = nn.ModuleDict({name: _Cross(dim, config, dropout) for name in asking})
        self.join = nn.Linear(len(names) * dim, dim)
        self.classify = nn.Linear(2 * dim, 2)

    def forward(self, features_BTE: Tensor, valid_BT: Tensor) -> Tensor:
        """Two logits (B, 2) of clips; of one without a valid frame, numbers that say nothing.

        Args:
            features_BTE: (B, T, 2 D): RGB, then depth. What stands in frames that are not valid has no effect.
            valid_BT: bool (B, T).
        """
        streams = self._encoded(features_BTE, valid_BT)
        joined_BTD: Tensor = self.join(torch.cat(list(self._crossed(streams, valid_BT)[0].values()), -1))
        return torch.as_tensor(self.classify(_pooled(F.relu(joined_BTD), valid_BT)))

    def attention(self, features_BTE: Tensor, valid_BT: Tensor) -> dict[str, Tensor]:
        """The maps of cross-attention (B, A, Q, K), by the stream that asks. Each row of a map sums to 1."""
        return self._crossed(self._encoded(features_BTE, valid_BT), valid_BT)[1]

    def _encoded(self, features_BTE: Tensor, valid_BT: Tensor) -> dict[str, Tensor]:
        # NaN would go through any weight of 0.
        features_BTE = torch.where(valid_BT[..., None], features_BTE, 0.0).to(self.join.weight.dtype)
        rgb_BTD, depth_BTD = features_BTE[..., : self.dim], features_BTE[..., self.dim :]
        given = {"rgb": rgb_BTD, "depth": depth_BTD}
        place_TD = positions(features_BTE.shape[1], self.dim).to(features_BTE)
        return {name: encoder(given[name] + place_TD, valid_BT) for name, encoder in self.encoders.items()}

    def _crossed(self, streams: dict[str, Tensor], valid_BT: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The streams after each has asked the other as it was before, and the maps."""
        after, maps = dict(streams), {}
        for name, cross in self.crosses.items():
            other_BTD = streams["depth" if name == "rgb" else "rgb"]
            after[name], maps[name] = cross(streams[name], other_BTD, valid_BT)
        return after, maps


def positions(length: int, dim: int) -> Tensor:
    """Sines and cosines of each frame's place in its clip, float32 (T, D): a sine and its cosine beside each other."""
    angle_TF = torch.arange(length)[:, None] * torch.exp(torch.arange(0, dim, 2) * (-math.log(_SLOWEST) / dim))
    return torch.stack([angle_TF.sin(), angle_TF.cos()], -1).flatten(1)[:, :dim]


def _pooled(joined_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    """Mean, then maximum, over the valid frames: (B, 2 D); zeros where there is none."""
    valid_BT1 = valid_BT[..., None]
    mean_BD = torch.where(valid_BT1, joined_BTD, 0.0).sum(1) / valid_BT.sum(1, keepdim=True).clamp(min=1)
    # Nothing is below 0 after the ReLU.
    return torch.cat([mean_BD, torch.where(valid_BT1, joined_BTD, 0.0).amax(1)], -1)


class _Attention(nn.Module):
    """Attention over the valid frames of a clip, and its maps."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.ask, self.answer = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out, self.dropout = nn.Linear(dim, dim), nn.Dropout(dropout)

    def forward(self, asking_BQD: Tensor, asked_BKD: Tensor, valid_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Answers (B, Q, D), and maps (B, A, Q, K)."""
        query_BAQF = self._by_head(self.ask(asking_BQD))
        key_BAKF, value_BAKF = map(self._by_head, self.answer(asked_BKD).chunk(2, -1))
        weight_BAQK = query_BAQF @ key_BAKF.transpose(-1, -2) / math.sqrt(query_BAQF.shape[-1])
        # Finite, so that a clip without a valid frame makes no NaN, through which a gradient would not be one either.
        hidden_B11K = ~valid_BK[:, None, None]
        weight_BAQK = weight_BAQK.float().masked_fill(hidden_B11K, torch.finfo(torch.float32).min).softmax(-1)
        found_BAQF = self.dropout(weight_BAQK).to(value_BAKF.dtype) @ value_BAKF
        return self.out(found_BAQF.transpose(1, 2).flatten(2)), weight_BAQK

    def _by_head(self, features_BTD: Tensor) -> Tensor:
        split_BTAF = features_BTD.reshape(*features_BTD.shape[:-1], self.heads, -1)
        return split_BTAF.transpose(1, 2)


class _Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, dim: int, config: FusionConfig, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(dim, config.heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        inner = [nn.Linear(dim, config.hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(config.hidden, dim)]
        self.inner, self.dropout = nn.Sequential(*inner), nn.Dropout(dropout)

    def forward(self, stream_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        normed_BTD = self.norm1(stream_BTD)
        stream_BTD = stream_BTD + self.dropout(self.attention(normed_BTD, normed_BTD, valid_BT)[0])
        added_BTD: Tensor = self.dropout(self.inner(self.norm2(stream_BTD)))
        return stream_BTD + added_BTD


class _Encoder(nn.Module):
    def __init__(self, dim: int, config: FusionConfig, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(dim, config, dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, stream_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        for layer in self.layers:
            stream_BTD = layer(stream_BTD, valid_BT)
        return torch.as_tensor(self.norm(stream_BTD))


class _Cross(nn.Module):
    """One stream asks the other."""

    def __init__(self, dim: int, config: FusionConfig, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(dim, config.heads, dropout)
        self.norm, self.residual = nn.LayerNorm(dim), config.residuals

    def forward(self, asking_BTD: Tensor, asked_BTD: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
        answer_BTD, map_BAQK = self.attention(asking_BTD, asked_BTD, valid_BT)
        return self.norm(asking_BTD + answer_BTD if self.residual else answer_BTD), map_BAQK
