"""How long models take, fairly: in turns on the same batch, with nothing loading beside them.

Measured one after the other, or beside a thread that makes the next batch, a small model can look slower than a large
one: the machine was busier when its turn came.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["TIMED_BATCH", "how_timed", "medians"]

TIMED_BATCH = 8
"""Samples of the batch that all take."""
_TURNS = 9


def medians(runs: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """The median seconds of each of several computations.

    They take turns, every other time from the last to the first; what each does first of all is not counted.

    Args:
        runs: Each does the whole work on a batch that lies ready.
        device: Where they run.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(_TURNS + 1):
        order = range(len(runs)) if turn % 2 else reversed(range(len(runs)))
        for n in order:
            began = time.perf_counter()
            runs[n]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[n].append(time.perf_counter() - began)
    return [float(np.median(took[1:])) for took in seconds]


def how_timed(samples: int, device: torch.device) -> dict[str, Any]:
    """What is to be known of such times, as JSON can say it: samples of the batch, turns, device and CPU threads."""
    return {
        "what": "medians of turns on the same batch, with nothing loading beside them",
        "batch": samples,
        "turns": _TURNS,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
