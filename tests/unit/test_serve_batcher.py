"""Batches made of concurrent calls: nothing waits without need, nothing is lost, an error stays with its batch."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve.batcher import Batcher


def run(scenario: Callable[[ThreadPoolExecutor], Coroutine[Any, Any, None]]) -> None:
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(scenario(pool))


def test_what_comes_while_one_batch_runs_is_the_next() -> None:
    gate, batches = threading.Event(), []

    def work(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        if len(batches) == 1:
            assert gate.wait(10)
        return [item * 10 for item in items]

    async def scenario(pool: ThreadPoolExecutor) -> None:
        batcher = Batcher(work, pool, most=3)
        calls = [asyncio.create_task(batcher(i)) for i in range(6)]
        while not (batches or calls[0].done()):
            await asyncio.sleep(0)
        gate.set()
        assert [(await call).result for call in calls] == [0, 10, 20, 30, 40, 50]

    run(scenario)
    assert [item for batch in batches for item in batch] == list(range(6))
    assert max(map(len, batches)) == 3
    assert len(batches) <= 3


def test_a_lone_call_goes_at_once_and_says_what_it_took() -> None:
    async def scenario(pool: ThreadPoolExecutor) -> None:
        batcher = Batcher(lambda items: [sum(item) for item in items], pool, most=4)
        done = await batcher([1, 2, 3], size=3)
        assert (done.result, done.batch) == (6, 3)
        assert 0 <= done.wait_s < 5
        assert len(batcher) == 0

    run(scenario)


def test_groups_are_not_mixed_and_sizes_are_kept() -> None:
    batches: list[list[tuple[str, int]]] = []

    def work(items: Sequence[tuple[str, int]]) -> list[None]:
        batches.append(list(items))
        return [None] * len(items)

    async def scenario(pool: ThreadPoolExecutor) -> None:
        batcher = Batcher(work, pool, most=4)
        sizes = [1, 3, 2, 9, 1, 1, 4, 2]
        await asyncio.gather(
            *(batcher(("ab"[i % 2], size), size=size, group="ab"[i % 2]) for i, size in enumerate(sizes))
        )

    run(scenario)
    for batch in batches:
        assert len({group for group, _ in batch}) == 1
        assert len(batch) == 1 or sum(size for _, size in batch) <= 4
    assert sorted(size for batch in batches for _, size in batch) == [1, 1, 1, 2, 2, 3, 4, 9]


def test_an_error_reaches_its_batch_only() -> None:
    def work(items: Sequence[int]) -> list[int]:
        if -1 in items:
            raise ValueError("bad item")
        return list(items)

    async def scenario(pool: ThreadPoolExecutor) -> None:
        batcher = Batcher(work, pool, most=1)
        results = await asyncio.gather(*map(batcher, [1, -1, 2]), return_exceptions=True)
        assert isinstance(results[1], ValueError)
        assert [getattr(r, "result", None) for r in results] == [1, None, 2]

    run(scenario)


def test_calls_that_were_given_up_are_not_worked_on() -> None:
    gate, seen = threading.Event(), []

    def work(items: Sequence[int]) -> list[int]:
        seen.extend(items)
        assert gate.wait(10)
        return list(items)

    async def scenario(pool: ThreadPoolExecutor) -> None:
        batcher = Batcher(work, pool, most=1)
        calls = [asyncio.create_task(batcher(i)) for i in range(3)]
        while not (seen or calls[0].done()):
            await asyncio.sleep(0)
        calls[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[1]
        gate.set()
        assert (await calls[2]).result == 2

    run(scenario)
    assert seen == [0, 2]
