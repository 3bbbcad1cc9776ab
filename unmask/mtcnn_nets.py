"""The three networks of MTCNN with facenet-pytorch's trained weights, laid out so that they run fast.

Method: Zhang et al., "Joint face detection and alignment using multi-task cascaded convolutional networks", 2016. The
weights are those in facenet-pytorch's wheel; the functions are the same, the arithmetic is arranged anew:

- Inputs have a fourth channel that no weight sees, because area resampling moves four channels at once.
- PNet's first convolution and the 2 x 2 pooling after it become one convolution of stride 2 whose four groups of
  channels are the four places of a pooling window, and a maximum over the groups.
- The two-way softmax is the sigmoid of the difference of its logits; the heads of a network are one matrix.
- Activations lie channels-last, and the dense layers' weights are in that order.

Axes: N items, H rows, W columns, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.detection import weights_file

__all__ = ["OutputNet", "ProposalNet", "RefineNet", "load_weights"]

Weights = dict[str, Tensor]


def load_weights(name: str) -> Weights:
    """facenet-pytorch's weights of "pnet", "rnet" or "onet".

    Raises:
        ModelError: The package, or this file in it, is absent.
    """
    weights: Weights = torch.load(weights_file(name), map_location="cpu", weights_only=True)
    return weights


class ProposalNet(nn.Module):
    """PNet: scores a 12 x 12 window at every second pixel of a pyramid level."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        kernel = _pad_channel(weights["conv1.weight"])
        places = [F.pad(kernel, (x, 1 - x, y, 1 - y)) for y in (0, 1) for x in (0, 1)]
        self.conv1 = _conv(torch.cat(places), weights["conv1.bias"].repeat(4), stride=2)
        self.prelu1 = _prelu(weights["prelu1.weight"].repeat(4))
        self.conv2 = _conv(weights["conv2.weight"], weights["conv2.bias"])
        self.prelu2 = _prelu(weights["prelu2.weight"])
        self.conv3 = _conv(weights["conv3.weight"], weights["conv3.bias"])
        self.prelu3 = _prelu(weights["prelu3.weight"])
        self.face = _linear(_margin(weights["conv4_1.weight"]).flatten(1), _margin(weights["conv4_1.bias"]))
        self.box = _linear(weights["conv4_2.weight"].flatten(1), weights["conv4_2.bias"])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (N, 4, H, W) to face probabilities (N, h, w) and features (N, h, w, 32) for `box`."""
        odd_y, odd_x = x.shape[2] % 2, x.shape[3] % 2
        x = self.prelu1(self.conv1(F.pad(x, (0, odd_x, 0, odd_y)) if odd_x or odd_y else x))
        # Pooling windows at an odd border are cut off there: the place outside repeats the one inside.
        if odd_y:
            x[:, 20:, -1] = x[:, :20, -1]
        if odd_x:
            x[:, 10:20, :, -1], x[:, 30:, :, -1] = x[:, :10, :, -1], x[:, 20:30, :, -1]
        x = torch.maximum(x[:, :20], x[:, 20:])
        x = torch.maximum(x[:, :10], x[:, 10:])
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x)))).permute(0, 2, 3, 1)
        return self.face(x.float()).squeeze(-1).sigmoid(), x


class RefineNet(nn.Module):
    """RNet: judges crops of 24 x 24."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.features = _features(weights, convolutions=3, pools=(3, 3))
        self.dense = _dense(weights, "dense4", "prelu4", side=3)
        self.heads = _heads(weights, "dense5_1", "dense5_2")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised crops (N, 4, 24, 24) to face probabilities (N,) and box corrections (N, 4)."""
        out = self.heads(self.dense(_flat(self.features(x)))).float()
        return out[:, 0].sigmoid(), out[:, 1:5]


class OutputNet(nn.Module):
    """ONet: judges crops of 48 x 48 and finds the landmarks."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.features = _features(weights, convolutions=4, pools=(3, 3, 2))
        self.dense = _dense(weights, "dense5", "prelu5", side=3)
        self.heads = _heads(weights, "dense6_1", "dense6_2", "dense6_3")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised crops (N, 4, 48, 48) to probabilities (N,), box corrections (N, 4) and landmarks (N, 5, 2)."""
        out = self.heads(self.dense(_flat(self.features(x)))).float()
        return out[:, 0].sigmoid(), out[:, 1:5], out[:, 5:].view(-1, 2, 5).transpose(1, 2)


def _features(weights: Weights, convolutions: int, pools: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(1, convolutions + 1):
        kernel = weights[f"conv{i}.weight"]
        layers.append(_conv(_pad_channel(kernel) if i == 1 else kernel, weights[f"conv{i}.bias"]))
        layers.append(_prelu(weights[f"prelu{i}.weight"]))
        if i <= len(pools):
            layers.append(nn.MaxPool2d(pools[i - 1], 2, ceil_mode=True))
    return nn.Sequential(*layers)


def _dense(weights: Weights, dense: str, prelu: str, side: int) -> nn.Sequential:
    """The trained layer takes (W, H, C); activations here lie as (H, W, C)."""
    kernel = weights[f"{dense}.weight"]
    kernel = kernel.view(len(kernel), side, side, -1).transpose(1, 2).flatten(1)
    return nn.Sequential(_linear(kernel, weights[f"{dense}.bias"]), _prelu(weights[f"{prelu}.weight"]))


def _heads(weights: Weights, face: str, *others: str) -> nn.Linear:
    weight, bias = (
        torch.cat([_margin(weights[f"{face}.{part}"]), *(weights[f"{other}.{part}"] for other in others)])
        for part in ("weight", "bias")
    )
    return _linear(weight, bias)


def _flat(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1)


def _margin(two: Tensor) -> Tensor:
    """Weights of "face" less weights of "no face"."""
    return two[1:] - two[:1]


def _pad_channel(kernel: Tensor) -> Tensor:
    return F.pad(kernel, (0, 0, 0, 0, 0, 1))


def _conv(weight: Tensor, bias: Tensor, stride: int = 1) -> nn.Conv2d:
    outputs, inputs, side, _ = weight.shape
    layer = nn.Conv2d(inputs, outputs, side, stride)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _prelu(weight: Tensor) -> nn.PReLU:
    layer = nn.PReLU(len(weight))
    layer.load_state_dict({"weight": weight})
    return layer
