"""What waits between a live source and the session that scores it: a queue in which the oldest frame gives way.

Frames, losses, gaps and changes of state leave in the order in which they came. A frame that has to give way leaves a
`Lost` in its place, so that every frame is accounted for and no window closes over it. Nothing here can grow: losses
that follow on each other are one item.
"""

import asyncio
import contextlib
import threading
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeAlias

from unmask.errors import Reason
from unmask.records import Frame

__all__ = ["FrameQueue", "Gap", "LiveFrame", "Lost", "StateChange", "StreamItem", "StreamState"]

# More changes than this wait only where nobody takes them.
_MOST_NEWS = 256


class StreamState(StrEnum):
    """What a source is doing."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALLED = "stalled"
    RECONNECTING = "reconnecting"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, eq=False)
class LiveFrame:
    """A sampled frame.

    Args:
        frame: Upright RGB; its `pts_s` is the stream's time, which rises over all connections.
        arrived_s: When it was decoded or came, by `time.monotonic`.
    """

    frame: Frame
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """Frames that were due, and will not be scored.

    Args:
        pts_s: When the first of them would be shown.
        reason: Why.
        count: How many, one after the other.
    """

    pts_s: float
    reason: Reason
    count: int = 1


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch [start_s, end_s) of the stream of which there is nothing: no window spans it. It ends with a frame."""

    reason: Reason
    start_s: float
    end_s: float
    message: str


@dataclass(frozen=True, slots=True)
class StateChange:
    """The source does something else now.

    Args:
        state: What.
        reason: Why, where something went wrong.
        message: The same as a sentence.
        retry_in_s: When it connects again.
        media: What it sends, once it is known: container, codec, pixel_format, width, height, rate_fps.
    """

    state: StreamState
    reason: Reason | None = None
    message: str | None = None
    retry_in_s: float | None = None
    media: dict[str, Any] | None = None


StreamItem: TypeAlias = LiveFrame | Lost | Gap | StateChange


class FrameQueue:
    """A queue between threads, or from a thread into an event loop.

    Args:
        frames: How many frames may wait; at least 1.
    """

    def __init__(self, frames: int = 8) -> None:
        assert frames >= 1
        self._most = frames
        self._items: deque[StreamItem] = deque()
        self._frames = 0
        self._changed = threading.Condition()
        self._closed = self._was_dropped = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def __len__(self) -> int:
        """How many frames wait."""
        return self._frames

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        return self._closed

    @property
    def was_dropped(self) -> bool:
        """Whether it was closed before the source came to its end."""
        return self._was_dropped

    def put(self, item: StreamItem, *, wait: bool = False) -> None:
        """Add an item; a frame pushes the oldest frame out where there is no room.

        Args:
            item: What.
            wait: Wait for room instead, for a source that can be made to wait. Ends when the queue is closed.
        """
        with self._changed:
            if isinstance(item, LiveFrame):
                if wait:
                    self._changed.wait_for(lambda: self._closed or self._frames < self._most)
                elif self._frames >= self._most:
                    self._drop_oldest()
                self._frames += 1
            if self._closed:
                # What comes after the end is not taken any more; a frame is still accounted for.
                self._append(self._as_lost(item)) if isinstance(item, LiveFrame) else None
            else:
                self._append(item)
            self._wake()

    def _as_lost(self, item: LiveFrame, reason: Reason = Reason.INTERRUPTED) -> Lost:
        self._frames -= 1
        return Lost(item.frame.pts_s, reason)

    def _drop_oldest(self) -> None:
        items = list(self._items)
        at = next(n for n, item in enumerate(items) if isinstance(item, LiveFrame))
        oldest = items[at]
        assert isinstance(oldest, LiveFrame)
        items[at] = self._as_lost(oldest, Reason.QUEUE_FULL)
        self._items.clear()
        for item in items:
            self._append(item)

    def _append(self, item: StreamItem) -> None:
        last = self._items[-1] if self._items else None
        if isinstance(item, Lost) and isinstance(last, Lost) and last.reason is item.reason:
            self._items[-1] = replace(last, count=last.count + item.count)
            return
        self._items.append(item)
        if len(self._items) > _MOST_NEWS + self._most:
            self._compact()

    def _compact(self) -> None:
        """Nobody listens: half of the news goes. Frames stay, and so does every loss's count."""
        losses: dict[Reason, Lost] = {}
        for item in self._items:
            if isinstance(item, Lost):
                first = losses.get(item.reason)
                losses[item.reason] = replace(first, count=first.count + item.count) if first else item
        rest = [item for item in self._items if not isinstance(item, Lost)]
        news = [item for item in rest if not isinstance(item, LiveFrame)]
        gone = {id(item) for item in news[: len(news) // 2]}
        self._items = deque([*losses.values(), *(item for item in rest if id(item) not in gone)])

    def get(self, timeout_s: float | None = None) -> StreamItem | None:
        """Wait for the next item.

        Returns:
            None once the queue is closed and empty, or when the time is up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout_s)
            return self._take()

    async def next(self) -> StreamItem | None:
        """`get`, for one task of an event loop at a time. None: closed and empty."""
        with self._changed:
            event = asyncio.Event()
            self._waiter = (asyncio.get_running_loop(), event)
        while True:
            with self._changed:
                if self._items or self._closed:
                    return self._take()
                event.clear()
            await event.wait()

    def _take(self) -> StreamItem | None:
        if not self._items:
            return None
        item = self._items.popleft()
        if isinstance(item, LiveFrame):
            self._frames -= 1
            self._changed.notify_all()
        return item

    def close(self, *, drop: bool = True) -> None:
        """Nothing more will come.

        Args:
            drop: Frames that wait are not to be scored any more; they are `Lost`, as interrupted.
        """
        with self._changed:
            self._was_dropped = self._was_dropped or (drop and not self._closed)
            self._closed = True
            if drop:
                items = [self._as_lost(i) if isinstance(i, LiveFrame) else i for i in self._items]
                self._items.clear()
                for item in items:
                    self._append(item)
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is not None:
            loop, event = self._waiter
            with contextlib.suppress(RuntimeError):  # its loop is gone
                loop.call_soon_threadsafe(event.set)
