"""Losses against their definitions, computed anew in NumPy."""

import numpy as np
import pytest
import torch

from train.config import LossConfig
from train.losses import Loss, alignment, per_class, rmse, uniformity

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, -2.0])
LABELS = np.array([1.0, 0.0, 0.0, 1.0, 0.0])


def cross_entropy(logits: np.ndarray, targets: np.ndarray, weight: float = 1.0) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits))
    return np.asarray(-(weight * targets * np.log(p) + (1 - targets) * np.log(1 - p)))


def loss_of(config: LossConfig, reals: int = 3, fakes: int = 2) -> float:
    return float(Loss(config, reals=reals, fakes=fakes)(torch.tensor(LOGITS), torch.tensor(LABELS)))


def test_bce_is_the_mean_over_the_batch() -> None:
    assert loss_of(LossConfig()) == pytest.approx(cross_entropy(LOGITS, LABELS).mean(), rel=1e-6)


def test_the_automatic_weight_is_reals_over_fakes() -> None:
    found = loss_of(LossConfig(pos_weight="auto"), reals=30, fakes=4)
    assert found == pytest.approx(cross_entropy(LOGITS, LABELS, 7.5).mean(), rel=1e-6)
    assert loss_of(LossConfig(pos_weight=2.0)) == pytest.approx(cross_entropy(LOGITS, LABELS, 2.0).mean(), rel=1e-6)


def test_each_class_has_a_mean_of_its_own() -> None:
    smooth = LABELS * 0.99 + 0.005
    each = cross_entropy(LOGITS, smooth)
    expected = (each[LABELS == 1].mean() + each[LABELS == 0].mean()) / 2
    assert loss_of(LossConfig(kind="per_class", label_smoothing=0.01)) == pytest.approx(expected, rel=1e-6)


def test_a_batch_of_one_class_counts_that_class_alone() -> None:
    losses = torch.tensor([1.0, 3.0])
    assert float(per_class(losses, torch.tensor([1.0, 1.0]))) == 2.0
    assert float(per_class(losses, torch.tensor([0.0, 0.0]))) == 2.0


def test_rmse_has_a_finite_slope_where_it_is_zero() -> None:
    output = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert float(rmse(output.detach(), torch.tensor([2.0, 2.0, 2.0]))) == pytest.approx(np.sqrt(5 / 3), rel=1e-6)
    rmse(output, output.detach().clone()).backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


def test_alignment_is_the_mean_squared_distance_of_pairs_of_one_class() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 8))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5) if LABELS[i] == LABELS[j]]
    expected = np.mean([np.sum((unit[i] - unit[j]) ** 2) for i, j in pairs])
    assert float(alignment(torch.tensor(features), torch.tensor(LABELS))) == pytest.approx(expected, rel=1e-6)
    assert float(alignment(torch.randn(2, 4), torch.tensor([0.0, 1.0]))) == 0.0


def test_uniformity_is_the_log_of_the_mean_potential_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(6, 8))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    expected = np.log(np.mean([np.exp(-2 * np.sum((unit[i] - unit[j]) ** 2)) for i, j in pairs]))
    assert float(uniformity(torch.tensor(features))) == pytest.approx(expected, rel=1e-6)
    assert float(uniformity(torch.randn(1, 8))) == 0.0


def test_the_terms_add_up_by_their_weights() -> None:
    features = torch.tensor(np.random.default_rng(2).normal(size=(5, 8)))
    loss = Loss(LossConfig(alignment=0.1, uniformity=0.5), reals=3, fakes=2)
    found = float(loss(torch.tensor(LOGITS), torch.tensor(LABELS), features))
    plain = cross_entropy(LOGITS, LABELS).mean()
    expected = plain + 0.1 * float(alignment(features, torch.tensor(LABELS))) + 0.5 * float(uniformity(features))
    assert found == pytest.approx(expected, rel=1e-5)
