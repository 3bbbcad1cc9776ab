"""Counts how often each batch was begun, so that one which kills its actor every time is found out.

Ray starts a task again for ever when its worker dies; nothing but a count that survives the worker can end that.
"""

from typing import Any

import ray
from ray.exceptions import RayError

__all__ = ["Ledger", "begin", "end", "start_ledger"]

# Deaths of a worker in the midst of one batch that are put down to others: the OOM killer, an operator, a node.
_PATIENCE = 3


class Ledger:
    """An actor: counts in memory. A new run, and a ledger that died, start from nothing."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, key: str) -> int:
        """Count a beginning, and give the number of those so far."""
        self._begun[key] = self._begun.get(key, 0) + 1
        return self._begun[key]

    def end(self, key: str) -> None:
        """The work was done; forget it."""
        self._begun.pop(key, None)


def start_ledger() -> Any:
    """Start a ledger; it ends with the run."""
    return ray.remote(Ledger).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()


def begin(ledger: Any, key: str) -> bool:
    """Whether the work may be begun (once more).

    Args:
        ledger: What `start_ledger` gave.
        key: Names the work.
    """
    if ledger is None:
        return True
    try:
        return bool(ray.get(ledger.begin.remote(key)) <= _PATIENCE)
    except RayError:
        return True  # without a count nothing is held against it


def end(ledger: Any, key: str) -> None:
    """The work was done, well or not, and its process lives."""
    if ledger is not None:
        ledger.end.remote(key)
