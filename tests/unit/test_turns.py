"""Times of models: in turns, and without what a first run costs."""

from collections.abc import Callable

import pytest
import torch

from train import turns

CPU = torch.device("cpu")


def test_all_take_turns_and_the_first_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = 0.0, ""

    def run(name: str, first: float, others: float) -> Callable[[], None]:
        def work() -> None:
            nonlocal now, order
            # Each time a little more: with the first of ten, the median would be another.
            now += others + order.count(name) if name in order else first
            order += name

        return work

    monkeypatch.setattr("time.perf_counter", lambda: now)
    found = turns.medians([run("a", 100.0, 2.0), run("b", 50.0, 3.0)], CPU)
    assert found == pytest.approx([7.0, 8.0])
    told = turns.how_timed(8, CPU)
    assert order == "baab" * (told["turns"] // 2 + 1)
    assert (told["batch"], told["device"], told["threads"]) == (8, "cpu", torch.get_num_threads())


def test_a_machine_that_slows_down_slows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now, count = 0.0, 0

    def work() -> None:
        nonlocal now, count
        now, count = now + (1.0 if count < 10 else 10.0), count + 1

    monkeypatch.setattr("time.perf_counter", lambda: now)
    first, second = turns.medians([work, work], CPU)
    assert first == second
