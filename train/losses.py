"""What is minimised. Every loss is the mean over a batch; gradients over workers are averaged after that.

Axes: B samples of a batch, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import LossConfig

__all__ = ["Loss", "alignment", "per_class", "rmse", "uniformity"]

_EPSILON = 1e-12


class Loss:
    """The loss that a configuration asks for.

    Args:
        config: Which.
        reals: Real samples in training.
        fakes: Fake ones; their ratio is the automatic weight.
    """

    def __init__(self, config: LossConfig, *, reals: int, fakes: int) -> None:
        self.config = config
        weight = config.pos_weight
        self.pos_weight = reals / max(fakes, 1) if weight == "auto" else None if weight is None else float(weight)

    def __call__(self, logits_B: Tensor, label_B: Tensor, features_BD: Tensor | None = None) -> Tensor:
        """The loss, a scalar in float32.

        Args:
            logits_B: Float; opinion scores for `rmse`.
            label_B: 0 or 1, or opinion scores.
            features_BD: For alignment and uniformity.
        """
        logits_B, config = logits_B.float(), self.config
        if config.kind == "rmse":
            loss = rmse(logits_B, label_B)
        else:
            target_B = label_B * (1 - config.label_smoothing) + config.label_smoothing / 2
            weight = None if self.pos_weight is None else logits_B.new_tensor(self.pos_weight)
            loss_B = F.binary_cross_entropy_with_logits(logits_B, target_B, pos_weight=weight, reduction="none")
            loss = per_class(loss_B, label_B) if config.kind == "per_class" else loss_B.mean()
        if features_BD is not None and config.alignment:
            loss = loss + config.alignment * alignment(features_BD.float(), label_B)
        if features_BD is not None and config.uniformity:
            loss = loss + config.uniformity * uniformity(features_BD.float())
        return loss


def per_class(loss_B: Tensor, label_B: Tensor) -> Tensor:
    """The mean of the fakes' mean loss and the reals' mean loss; of the one class where the other is absent (S2)."""
    means = [loss_B[label_B == label].mean() for label in (0, 1) if (label_B == label).any()]
    return torch.stack(means).mean()


def rmse(output_B: Tensor, score_B: Tensor) -> Tensor:
    """Root mean square error (S0); its slope at 0 is finite."""
    return (F.mse_loss(output_B, score_B) + _EPSILON).sqrt()


def alignment(features_BD: Tensor, label_B: Tensor) -> Tensor:
    """Mean squared distance of pairs of one class on the unit sphere (Wang & Isola 2020); 0 without pairs."""
    unit_BD = F.normalize(features_BD, dim=1)
    same_BB = (label_B[:, None] == label_B[None]).triu(1)
    distance_BB = 2 - 2 * unit_BD @ unit_BD.T
    count = same_BB.sum()
    return (distance_BB * same_BB).sum() / count.clamp(min=1)


def uniformity(features_BD: Tensor) -> Tensor:
    """Log of the mean Gaussian potential of all pairs on the unit sphere (Wang & Isola 2020, t = 2), at most 0."""
    unit_BD = F.normalize(features_BD, dim=1)
    if len(unit_BD) < 2:
        return unit_BD.sum() * 0.0
    distance_P = torch.pdist(unit_BD).square()
    return torch.logsumexp(-2 * distance_P, 0) - torch.tensor(float(len(distance_P))).log()
