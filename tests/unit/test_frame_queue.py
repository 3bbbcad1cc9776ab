"""What waits between a source and its session."""

import asyncio
import threading
import time

import numpy as np
import pytest

from unmask.errors import Reason
from unmask.frame_queue import FrameQueue, Gap, LiveFrame, Lost, StateChange, StreamItem, StreamState
from unmask.records import Frame

PIXELS = np.zeros((4, 4, 3), np.uint8)


def frame(k: int) -> LiveFrame:
    return LiveFrame(Frame(PIXELS, float(k), k), 0.0)


def drained(queue: FrameQueue) -> list[StreamItem]:
    queue.close(drop=False)
    return list(iter(queue.get, None))


def told(items: list[StreamItem]) -> list[object]:
    """Frames by number, losses as (first, count)."""

    def of(item: StreamItem) -> object:
        if isinstance(item, LiveFrame):
            return item.frame.index
        return (item.pts_s, item.count) if isinstance(item, Lost) else item

    return [of(item) for item in items]


def test_the_oldest_frames_give_way_and_are_accounted_for_in_their_place() -> None:
    queue, live = FrameQueue(3), StateChange(StreamState.LIVE)
    queue.put(live)
    for k in range(8):
        queue.put(frame(k))
    assert len(queue) == 3
    assert told(drained(queue)) == [live, (0.0, 5), 5, 6, 7]


def test_the_order_of_all_items_is_kept() -> None:
    queue, gap = FrameQueue(8), Gap(Reason.STREAM_STALLED, 1.0, 3.0, "It stalled.")
    items = [frame(0), frame(1), gap, Lost(3.0, Reason.CORRUPT_FRAME), frame(4)]
    for item in items:
        queue.put(item)
    assert drained(queue) == items


def test_losses_for_different_reasons_stay_apart() -> None:
    queue = FrameQueue(1)
    queue.put(Lost(0.0, Reason.CORRUPT_FRAME))
    queue.put(Lost(1.0, Reason.CORRUPT_FRAME, 2))
    queue.put(Lost(2.0, Reason.DECODE_FAILED))
    assert drained(queue) == [Lost(0.0, Reason.CORRUPT_FRAME, 3), Lost(2.0, Reason.DECODE_FAILED)]


def test_giving_up_loses_what_waits() -> None:
    queue = FrameQueue(8)
    for k in range(3):
        queue.put(frame(k))
    queue.close()
    assert queue.get() == Lost(0.0, Reason.INTERRUPTED, 3)
    assert queue.get() is None
    queue.put(frame(4))  # a source that has not noticed yet
    assert queue.get() == Lost(4.0, Reason.INTERRUPTED)


def test_a_queue_that_nobody_reads_stays_small_and_counts_every_frame() -> None:
    queue = FrameQueue(4)
    for k in range(3000):
        queue.put(frame(k))
        queue.put(Lost(float(k), Reason.CORRUPT_FRAME))
        queue.put(StateChange(StreamState.RECONNECTING))
    items = drained(queue)
    assert len(items) < 600
    counts = dict.fromkeys(Reason, 0)
    for item in items:
        if isinstance(item, Lost):
            counts[item.reason] += item.count
    assert counts[Reason.CORRUPT_FRAME] == 3000
    assert counts[Reason.QUEUE_FULL] + sum(isinstance(item, LiveFrame) for item in items) == 3000


def test_a_source_that_can_wait_loses_nothing() -> None:
    queue = FrameQueue(2)

    def fill() -> None:
        for k in range(50):
            queue.put(frame(k), wait=True)
        queue.close(drop=False)

    thread = threading.Thread(target=fill)
    thread.start()
    assert told(list(iter(queue.get, None))) == list(range(50))
    thread.join()


def test_get_gives_up_in_time() -> None:
    started = time.monotonic()
    assert FrameQueue().get(0.05) is None
    assert 0.04 < time.monotonic() - started < 2.0


@pytest.mark.parametrize("drop", [True, False])
def test_an_event_loop_is_woken(drop: bool) -> None:
    queue = FrameQueue()

    async def take() -> list[StreamItem]:
        items = []
        threading.Timer(0.05, queue.put, (frame(0),)).start()
        threading.Timer(0.15, queue.close, kwargs={"drop": drop}).start()
        while (item := await queue.next()) is not None:
            items.append(item)
        return items

    assert told(asyncio.run(asyncio.wait_for(take(), 10))) == [0]
