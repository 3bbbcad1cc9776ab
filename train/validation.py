"""How good a model is on the validation split. Every worker looks at a share, and all come to the same numbers.

Axes: K samples (frames, or clips), G videos (a self-blended video counts as another than its original).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from train.clips import Samples, batches
from train.context import Context
from train.network import Network
from train.precision import Precision
from train.samplers import Key
from unmask.errors import TrainingError
from unmask.metrics import Detections, UndefinedError
from unmask.opinions import Opinions

__all__ = ["HIGHER_IS_BETTER", "Validated", "keys_of", "validate"]

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "loss": False,
    "log_loss": False,
    "weighted_log_loss": False,
    "rmse": False,
    "auc": True,
    "plcc": True,
}
"""What an epoch can be picked by."""

_EPOCH = -1


@dataclass(frozen=True, slots=True, eq=False)
class Validated:
    """What a model said of the validation split.

    Args:
        metrics: By name; those that these data define.
        logits_K: float64, of each sample; opinion scores where those are trained.
        labels_K: float64, 0 or 1, or opinion scores.
        groups_K: int64, which video each sample is of.
    """

    metrics: Mapping[str, float]
    logits_K: NDArray[np.float64]
    labels_K: NDArray[np.float64]
    groups_K: NDArray[np.int64]

    def by_group(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean probability (or opinion score) and label of each video, float64 (G,)."""
        return _grouped(self.values_K, self.labels_K, self.groups_K)

    @property
    def values_K(self) -> NDArray[np.float64]:
        """Probabilities without calibration; opinion scores as they are."""
        is_mos = "rmse" in self.metrics
        return self.logits_K if is_mos else np.exp(-np.logaddexp(0.0, -self.logits_K))


def keys_of(samples: Samples) -> list[Key]:
    """What is looked at: every frame, some clips of every video; real and self-blended ones."""
    units, data = range(len(samples.pool)), samples.config.data
    if data.draw == "selfblend":
        pairs = [(u, blend) for u in units if samples.pool.label_U[u] == 0 for blend in (False, True)]
        return [Key(_EPOCH, n, u, blend) for n, (u, blend) in enumerate(pairs)]
    times = data.clips_per_video_tested if samples.length > 1 else 1
    return [Key(_EPOCH, u * times + k, u) for u in units for k in range(times)]


def validate(
    network: Network, samples: Samples, precision: Precision, context: Context, *, loader_workers: int
) -> Validated:
    """Run a model over the validation split; every worker calls this.

    Args:
        network: In any mode; it is put back into it.
        samples: Of the split.
        precision: Of the forward pass.
        context: The workers.
        loader_workers: Processes that load.

    Raises:
        TrainingError: The model's outputs are not finite.
        UsageError: Crops cannot be read.
    """
    keys = keys_of(samples)
    mine = keys[context.rank :: context.workers]
    size = 2 * samples.config.loop.batch
    pieces = [mine[k : k + size] for k in range(0, len(mine), size)]
    was_training = network.training
    network.eval()
    logits, units = [torch.zeros(0)], [torch.zeros(0, dtype=torch.int64)]
    with torch.inference_mode(), precision.autocast():
        for batch in batches(samples, pieces, workers=loader_workers, pinned=context.device.type == "cuda"):
            logits.append(network.logits(batch, context.device).float().cpu())
            units.append(batch.unit_B)
    network.train(was_training)
    logits_K, unit_K = np.zeros(len(keys)), np.zeros(len(keys), np.int64)
    for into_K, own in ((logits_K, logits), (unit_K, units)):
        for rank, part in enumerate(context.gather(torch.cat(own))):
            into_K[rank :: context.workers] = part.numpy()
    # What stands in for a damaged crop counts as what it is itself.
    blend_K = np.array([k.blend for k in keys])
    labels_K = np.where(blend_K, 1.0, samples.pool.label_U[unit_K].astype(np.float64))
    groups_K = 2 * samples.pool.video_U[unit_K].astype(np.int64) + blend_K
    if not np.isfinite(logits_K).all():
        raise TrainingError("the model's outputs in validation are not finite: lower optim.lr or set optim.clip_norm=1")
    is_mos = samples.config.model.task == "mos"
    metrics = _opinions(logits_K, labels_K, groups_K) if is_mos else _detection(logits_K, labels_K, groups_K)
    return Validated(metrics, logits_K, labels_K, groups_K)


def _grouped(
    values_K: NDArray[np.float64], labels_K: NDArray[np.float64], groups_K: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _, first_G, group_K = np.unique(groups_K, return_index=True, return_inverse=True)
    return np.bincount(group_K, values_K) / np.bincount(group_K), labels_K[first_G]


def _detection(
    logits_K: NDArray[np.float64], labels_K: NDArray[np.float64], groups_K: NDArray[np.int64]
) -> dict[str, float]:
    """The loss of samples; AUC, log losses and balanced accuracy of videos."""
    probability_K = np.exp(-np.logaddexp(0.0, -logits_K))
    metrics = {"loss": float(np.mean(np.logaddexp(0.0, logits_K) - labels_K * logits_K))}
    videos = Detections(*_grouped(probability_K, labels_K, groups_K))
    frames = Detections(probability_K, labels_K)
    wanted = {
        "auc": videos.auc,
        "log_loss": videos.log_loss,
        "weighted_log_loss": videos.weighted_log_loss,
        "balanced_accuracy": videos.balanced_accuracy,
        "frame_auc": frames.auc,
    }
    for name, measure in wanted.items():
        try:
            metrics[name] = measure()
        except UndefinedError:
            continue
    return metrics


def _opinions(
    scores_K: NDArray[np.float64], labels_K: NDArray[np.float64], groups_K: NDArray[np.int64]
) -> dict[str, float]:
    found = Opinions(*_grouped(scores_K, labels_K, groups_K))
    metrics = {"loss": found.rmse(), "rmse": found.rmse()}
    for name, measure in (("plcc", found.plcc), ("srcc", found.srcc)):
        try:
            metrics[name] = measure()
        except UndefinedError:
            continue
    return metrics
