"""Work on several frames at once on a CPU: threads across frames, not inside operations.

PyTorch's threads inside an operation wait for each other after every one of a cascade's hundreds of small operations;
beside a decoder, or on a machine that others use too, that wait is most of the time (measured: 45 s against 5 s for a
clip on two busy cores). Frames are independent, so each goes to a thread of its own.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["Workers", "cores"]

T = TypeVar("T")
R = TypeVar("R")

# More threads would wait for Python's lock.
_MOST = 8


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of threads that share models. On anything but a CPU, or where there is one core, there are none.

    Where there are any, PyTorch is set to one thread an operation, for the whole process.

    Args:
        device: Where the models lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = min(cores(), _MOST) if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        if self.count > 1:
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="unmask-worker")

    def map(self, work: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T]) -> list[R]:
        """Divide items into one share a worker, work on the shares at once, and join the results in order.

        Args:
            work: From a share of the items to one result an item. Called from several threads at once.
            items: In any number.

        Raises:
            BaseException: What `work` raised.
        """
        if self._pool is None or len(items) < 2:
            return list(work(items)) if items else []
        bounds = [len(items) * k // self.count for k in range(self.count + 1)]
        shares = [items[a:b] for a, b in itertools.pairwise(bounds) if a < b]
        return [result for part in self._pool.map(lambda share: list(work(share)), shares) for result in part]
