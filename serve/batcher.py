"""Calls of many callers joined into batches, without a wait.

While one batch is worked on, the calls that come are the next one: a lone caller never waits for others, and under load
batches grow by themselves.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Batcher", "Done"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """An answer, and what it took."""

    result: R
    wait_s: float
    """Until its batch began."""
    work_s: float
    """Of the whole batch."""
    batch: int
    """Sizes of the calls in the batch, added up."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call(Generic[T, R]):
    item: T
    size: int
    group: object
    answer: "asyncio.Future[Done[R]]"
    since_s: float


class Batcher(Generic[T, R]):
    """Joins calls of one event loop.

    Args:
        work: From items to one result each, in order. Runs in the executor, one batch at a time.
        executor: Where.
        most: The greatest size of a batch; a call larger than this goes alone.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]], executor: Executor, most: int) -> None:
        self._work, self._executor, self._most = work, executor, most
        self._waiting: deque[_Call[T, R]] = deque()
        self._running: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many calls wait."""
        return len(self._waiting)

    async def __call__(self, item: T, *, size: int = 1, group: object = None) -> Done[R]:
        """Have an item worked on.

        Args:
            item: What.
            size: What it adds to the size of its batch.
            group: Only items of one group share a batch.

        Raises:
            BaseException: What `work` raised for its batch.
        """
        loop = asyncio.get_running_loop()
        call: _Call[T, R] = _Call(item, size, group, loop.create_future(), time.perf_counter())
        self._waiting.append(call)
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run())
        return await call.answer

    async def _run(self) -> None:
        while self._waiting:
            calls = self._next()
            if not calls:
                continue
            started = time.perf_counter()
            try:
                work = [call.item for call in calls]
                results = await asyncio.get_running_loop().run_in_executor(self._executor, self._work, work)
                took, size = time.perf_counter() - started, sum(call.size for call in calls)
                answers = [
                    Done(result, started - call.since_s, took, size)
                    for call, result in zip(calls, results, strict=True)
                ]
            except BaseException as error:
                for call in calls:
                    if not call.answer.done():
                        call.answer.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for call, answer in zip(calls, answers, strict=True):
                if not call.answer.done():
                    call.answer.set_result(answer)

    def _next(self) -> list[_Call[T, R]]:
        """The oldest call that is still wanted, and those of its group that fit beside it."""
        calls: list[_Call[T, R]] = []
        rest: deque[_Call[T, R]] = deque()
        size = 0
        while self._waiting:
            call = self._waiting.popleft()
            if call.answer.done():  # its caller has gone
                continue
            if not calls or (call.group == calls[0].group and size + call.size <= self._most):
                calls.append(call)
                size += call.size
            else:
                rest.append(call)
        self._waiting = rest
        return calls
