import threading
from collections.abc import Sequence

import pytest
import torch

from unmask.workers import Workers


@pytest.mark.parametrize("count", [0, 1, 2, 3, 17])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    assert Workers(torch.device("cpu")).map(lambda share: [2 * k for k in share], range(count)) == [
        2 * k for k in range(count)
    ]


def test_shares_are_worked_on_at_once() -> None:
    workers = Workers(torch.device("cpu"))
    if workers.count < 2:
        pytest.skip("there is one core")
    barrier = threading.Barrier(2)

    def work(share: Sequence[int]) -> list[int]:
        barrier.wait(30)  # broken, and an error, unless two threads meet here
        return list(share)

    assert workers.map(work, [1, 2]) == [1, 2]
    assert torch.get_num_threads() == 1


def test_errors_come_through() -> None:
    def work(share: Sequence[int]) -> list[int]:
        raise ValueError(f"no {share[0]}")

    with pytest.raises(ValueError, match="no 1"):
        Workers(torch.device("cpu")).map(work, [1, 2])


def test_a_gpu_has_no_workers() -> None:
    workers = Workers(torch.device("meta"))
    assert workers.count == 1
    assert workers.map(lambda share: [len(share)] * len(share), [1, 2, 3]) == [3, 3, 3]
