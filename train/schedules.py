"""How the learning rate falls, and when training ends. What is decided is decided from numbers that all workers share.

The rate of each optimiser step is a function of that step and of the validations so far, not of an object that counts
calls: a run that is taken up again has the rate that it would have had.
"""

import math
from dataclasses import dataclass
from typing import Any

from train.config import OptimConfig

__all__ = ["Course", "rate"]

_LEAST_GAIN = 1e-4


def rate(config: OptimConfig, step: int, steps: int, drops: int = 0) -> float:
    """The learning rate of an optimiser step.

    Args:
        config: The schedule.
        step: From 0.
        steps: Of the whole run.
        drops: How often validation stood still (`plateau`).
    """
    warm = min((step + 1) / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    if config.schedule == "plateau":
        return float(config.lr * config.factor**drops)
    left = max(steps - config.warmup_steps, 1)
    done = min(max(step - config.warmup_steps, 0) / left, 1.0)
    shape = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "poly": (1 - done) ** config.power}
    return float(config.lr * warm * shape[config.schedule])


@dataclass(slots=True, kw_only=True)
class Course:
    """What validation said so far: the best epoch, how long ago it was, how often the rate fell.

    Args:
        higher_is_better: Of the number that is watched.
        patience: Epochs without gain before the rate falls (`plateau`).
        stop_after: Epochs without gain after which training ends; None for never.
    """

    higher_is_better: bool
    patience: int
    stop_after: int | None
    best: float | None = None
    best_epoch: int = -1
    best_loss: float = math.inf
    """Of the best epoch: the smaller one wins where two epochs are as good."""
    reference: float | None = None
    """What a gain is measured from: the last value that was one."""
    drops: int = 0
    waited: int = 0
    """Epochs since the best one, or since the rate fell."""
    stale: int = 0
    """Epochs since the best one."""

    def tell(self, epoch: int, value: float, loss: float = math.inf) -> bool:
        """Book an epoch's validation. Returns whether it is the best so far.

        As PyTorch's ReduceLROnPlateau does, the rate falls only for want of a relative gain of 1e-4; the best epoch is
        the best in plain numbers.
        """
        gain = self.reference is None or self._is_gain(self.reference, value)
        is_better = self.best is None or (value > self.best if self.higher_is_better else value < self.best)
        is_best = is_better or (value == self.best and loss < self.best_loss)
        self.reference = value if gain else self.reference
        self.stale = 0 if gain else self.stale + 1
        self.waited = 0 if gain else self.waited + 1
        if self.waited > self.patience:
            self.drops, self.waited = self.drops + 1, 0
        if is_best:
            self.best, self.best_epoch, self.best_loss = value, epoch, loss
        return is_best

    def _is_gain(self, reference: float, value: float) -> bool:
        margin = _LEAST_GAIN * abs(reference)
        return value > reference + margin if self.higher_is_better else value < reference - margin

    @property
    def is_over(self) -> bool:
        """Whether training shall end."""
        return self.stop_after is not None and self.stale >= self.stop_after

    def state(self) -> dict[str, Any]:
        """What changes, as JSON can say it."""
        return {
            k: getattr(self, k) for k in ("best", "best_epoch", "best_loss", "reference", "drops", "waited", "stale")
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up where `state` was."""
        for name, value in state.items():
            setattr(self, name, value)
