"""Reads a live source's queue in a thread, with the time of every item, so that tests can wait for what is to come."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from unmask.addresses import AddressPolicy
from unmask.errors import Reason
from unmask.frame_queue import FrameQueue, Gap, LiveFrame, Lost, StateChange, StreamItem, StreamState
from unmask.streams import StreamOptions, StreamSource

__all__ = ["SLACK_S", "Watcher", "watching"]

SLACK_S = 0.7
"""The machine of a test may be busy; figures of an idle one are in benchmarks/live.py."""


class _Source(Protocol):
    queue: FrameQueue

    def start(self) -> None: ...
    def close(self, wait_s: float | None = 0.0) -> bool: ...


class Watcher:
    """A source that is being read. Use it in a `with`: the source is closed at the end, and must end."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.items: list[tuple[float, StreamItem]] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> "Watcher":
        self.source.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.source.close(20.0)
        self._thread.join()

    def _read(self) -> None:
        while (item := self.source.queue.get()) is not None:
            with self._changed:
                self.items.append((time.monotonic(), item))
                self._changed.notify_all()

    def until(self, wanted: Callable[[StreamItem], bool], *, after: int = 0, within_s: float = 20.0) -> float:
        """When the first item came that is wanted, of those after the first `after`."""

        def found() -> float | None:
            return next((at for at, item in self.items[after:] if wanted(item)), None)

        with self._changed:
            at = self._changed.wait_for(found, within_s)
        assert at is not None, [item for _, item in self.items[after:]][-20:]
        return at

    def state(self, state: StreamState, reason: Reason | None = None, *, after: int = 0) -> float:
        """When the source said so."""
        return self.until(
            lambda i: isinstance(i, StateChange) and i.state is state and reason in (None, i.reason), after=after
        )

    def frame(self, *, after: int = 0) -> float:
        """When a frame came."""
        return self.until(lambda i: isinstance(i, LiveFrame), after=after)

    def finish(self) -> None:
        """Wait until the source ends by itself."""
        self._thread.join(30.0)
        assert not self._thread.is_alive()

    @property
    def frames(self) -> list[LiveFrame]:
        return [item for _, item in self.items if isinstance(item, LiveFrame)]

    @property
    def gaps(self) -> list[Gap]:
        return [item for _, item in self.items if isinstance(item, Gap)]

    @property
    def lost(self) -> Counter[Reason]:
        losses: Counter[Reason] = Counter()
        for _, item in self.items:
            if isinstance(item, Lost):
                losses[item.reason] += item.count
        return losses


def watching(address: str, *, policy: AddressPolicy | None = None, **options: Any) -> Watcher:
    """A source at an address, that is being read."""
    return Watcher(StreamSource(address, StreamOptions(**options), policy))
