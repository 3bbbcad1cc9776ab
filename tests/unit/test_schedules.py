"""Learning rates and early stopping, against PyTorch's own schedulers."""

import warnings

import pytest
import torch

from train.config import OptimConfig
from train.schedules import Course, rate


def optimiser(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates_of(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimiser itself never steps
        for _ in range(steps):
            found.append(scheduler.get_last_lr()[0])
            scheduler.step()
    return found


def test_poly_and_cosine_are_pytorchs() -> None:
    poly = torch.optim.lr_scheduler.PolynomialLR(optimiser(0.01), total_iters=20, power=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser(0.01), T_max=20)
    for name, scheduler in (("poly", poly), ("cosine", cosine)):
        config = OptimConfig(lr=0.01, schedule=name, power=0.9)  # type: ignore[arg-type]
        assert [rate(config, k, 20) for k in range(20)] == pytest.approx(rates_of(scheduler, 20), abs=1e-12)


def test_the_rate_warms_up() -> None:
    config = OptimConfig(lr=1.0, schedule="constant", warmup_steps=4)
    assert [rate(config, k, 10) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=4)
    assert rate(cosine, 4, 10) == 1.0
    assert rate(cosine, 10, 10) == pytest.approx(0.0, abs=1e-12)


def test_plateau_falls_when_pytorchs_does() -> None:
    values = [1.0, 0.9, 0.91, 0.92, 0.93, 0.9, 0.95, 0.96, 0.89995, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
    peer_optimiser = optimiser(1.0)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(peer_optimiser, factor=0.1, patience=2)
    course = Course(higher_is_better=False, patience=2, stop_after=None)
    config = OptimConfig(lr=1.0, schedule="plateau", factor=0.1, patience=2)
    for epoch, value in enumerate(values):
        peer.step(value)
        course.tell(epoch, value)
        assert rate(config, 0, 1, course.drops) == pytest.approx(peer_optimiser.param_groups[0]["lr"], rel=1e-9), epoch


def test_the_best_epoch_is_the_best_in_plain_numbers() -> None:
    course = Course(higher_is_better=True, patience=9, stop_after=2)
    assert [course.tell(n, v) for n, v in enumerate([0.5, 0.6, 0.60001, 0.6])] == [True, True, True, False]
    assert (course.best, course.best_epoch) == (0.60001, 2)
    assert course.tell(4, 0.60001, loss=0.3)  # as good, and the loss is known to be smaller
    assert not course.tell(5, 0.60001, loss=0.4)
    assert course.is_over  # two epochs without a gain worth the name


def test_a_course_is_taken_up_again() -> None:
    whole = Course(higher_is_better=False, patience=1, stop_after=4)
    halved = Course(higher_is_better=False, patience=1, stop_after=4)
    values = [3.0, 2.0, 2.5, 2.5, 2.5, 1.0]
    for n, value in enumerate(values):
        whole.tell(n, value)
        resumed = Course(higher_is_better=False, patience=1, stop_after=4)
        resumed.restore(halved.state())
        halved = resumed
        halved.tell(n, value)
    assert halved.state() == whole.state()
    assert not whole.is_over
