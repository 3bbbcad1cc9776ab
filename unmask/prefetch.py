"""An iterator that runs ahead in a thread of its own, so that decoding and detection overlap."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")


class _Ahead(Generic[T]):
    def __init__(self, items: Iterable[T], cost: Callable[[T], int], limit: int) -> None:
        self._items, self._cost, self._limit = items, cost, limit
        self._ready: deque[T] = deque()
        self._held = 0
        self._changed = threading.Condition()
        self._stopping = self._done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._produce, name="unmask-prefetch", daemon=True)

    def _produce(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, self._cost(item)):
                    return
        except BaseException as error:
            self._error = error  # raised again where the items are taken
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _put(self, item: T, cost: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not self._ready or self._held + cost <= self._limit)
            if not self._stopping:
                self._ready.append(item)
                self._held += cost
                self._changed.notify_all()
            return not self._stopping

    def run(self) -> Generator[T, None, None]:
        self._thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._ready or self._done)
                    if not self._ready:
                        break
                    item = self._ready.popleft()
                    self._held -= self._cost(item)
                    self._changed.notify_all()
                yield item
                del item
        finally:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            self._thread.join()
        if self._error is not None:
            raise self._error


def prefetched(items: Iterable[T], *, cost: Callable[[T], int], limit: int) -> Generator[T, None, None]:
    """Run an iterator in a thread, at most so far ahead.

    Args:
        items: Consumed in the thread, one item after the other.
        cost: What an item holds, in any unit, bytes for instance.
        limit: The sum of costs that may wait. One item may always wait, however much it costs.

    Yields:
        The items in their order.

    Raises:
        BaseException: What `items` raised, after the items before it. Closing the generator ends the thread.
    """
    return _Ahead(items, cost, limit).run()
