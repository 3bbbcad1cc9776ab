import threading
from collections.abc import Iterator

import pytest

from unmask.prefetch import prefetched


def test_all_items_come_in_order() -> None:
    assert list(prefetched(range(1000), cost=lambda _: 1, limit=7)) == list(range(1000))


def test_it_runs_ahead_and_no_further_than_allowed() -> None:
    made: list[int] = []
    reached = threading.Event()

    def items() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            if k == 5:
                reached.set()
            yield k

    ahead = prefetched(items(), cost=lambda _: 10, limit=40)
    assert next(ahead) == 0
    assert reached.wait(10)  # one taken, four waiting, one in the hand of the thread
    assert made == [0, 1, 2, 3, 4, 5]
    assert list(ahead) == list(range(1, 100))


def test_an_item_above_the_limit_still_passes() -> None:
    assert list(prefetched([50, 50, 1], cost=lambda k: k, limit=10)) == [50, 50, 1]


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk gone")

    ahead = prefetched(items(), cost=lambda _: 1, limit=10)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)


def test_closing_ends_the_thread() -> None:
    ahead = prefetched(iter(int, 1), cost=lambda _: 1, limit=3)
    assert next(ahead) == 0
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "unmask-prefetch"]
