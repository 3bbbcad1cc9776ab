"""The workers of a run and what they tell each other. The same for one process, and for many under Ray Train."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Context"]


def _nothing(_: dict[str, Any]) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One of the workers. Where there are several, PyTorch's process group connects them."""

    device: torch.device
    rank: int = 0
    workers: int = 1
    report: Callable[[dict[str, Any]], None] = field(default=_nothing)
    """Called by every worker at the end of every epoch, with the epoch's numbers."""

    @property
    def leads(self) -> bool:
        """Whether this is the worker that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.workers > 1:
            dist.barrier()

    @contextlib.contextmanager
    def apart(self, at_most: dt.timedelta) -> Iterator[None]:
        """Work that takes some workers longer than others: at its end each waits for all.

        It waits in a group of its own. The group of all else gives up after half an hour, which is right for a step of
        training and may be too short here; and on GPUs it would keep them busy with waiting.

        Args:
            at_most: How long a worker waits for the last one. One that is lost ends the wait at once.

        Raises:
            RuntimeError: A worker was lost, or took longer.
        """
        if self.workers == 1:
            yield
            return
        # Made before the work: making it is a meeting, too.
        group = dist.new_group(backend="gloo", timeout=at_most)
        yield
        dist.barrier(group)
        dist.destroy_process_group(group)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all workers."""
        total = torch.tensor(values, dtype=torch.float64, device=self._talking)
        if self.workers > 1:
            dist.all_reduce(total)
        plain: list[float] = total.tolist()
        return plain

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors what they are on the first worker. They lie where the model does."""
        if self.workers > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all workers, on the CPU, in the order of their ranks. They may differ in their first size."""
        if self.workers == 1:
            return [tensor.cpu()]
        mine = tensor.to(self._talking).contiguous()
        sizes = [torch.zeros(1, dtype=torch.int64, device=self._talking) for _ in range(self.workers)]
        dist.all_gather(sizes, torch.tensor([len(mine)], device=self._talking))
        longest = max(int(s) for s in sizes)
        padded = mine.new_zeros((longest, *mine.shape[1:]))
        padded[: len(mine)] = mine
        every = [torch.empty_like(padded) for _ in range(self.workers)]
        dist.all_gather(every, padded)
        return [t[: int(s)].cpu() for t, s in zip(every, sizes, strict=True)]

    @property
    def _talking(self) -> torch.device:
        """Where tensors must be that are sent: on the GPU with NCCL."""
        return self.device if self.workers > 1 and dist.get_backend() == "nccl" else torch.device("cpu")
