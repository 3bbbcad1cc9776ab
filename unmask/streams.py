"""Live sources: a thread that connects, reads, samples, and connects again, for as long as it takes.

What it reads leaves by a queue (`unmask.frame_queue`) in which the oldest frame gives way; changes of state and gaps
lie in it as items of their own. Times are presentation times: the first frame of a stream is at 0 s (a file keeps its
own times), and after a reconnection the clock tells how much time was lost.
"""

import logging
import math
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from unmask.addresses import AddressPolicy
from unmask.backoff import Backoff
from unmask.connection import Connection, Kind, Limits, kind_of
from unmask.errors import MediaError, Reason, UsageError
from unmask.flow import Picture
from unmask.frame_queue import FrameQueue, Gap, LiveFrame, Lost, StateChange, StreamState
from unmask.inputs import without_password
from unmask.picture import RgbConverter, orientation_of
from unmask.records import Frame
from unmask.sampler import Sampler

__all__ = ["Retry", "StreamOptions", "StreamSource"]

_LOG = logging.getLogger(__name__)

Retry = Literal["always", "established"]
Transport = Literal["tcp", "udp"]

# A source's clock that runs away from ours by more, forward or back, was set anew.
_CLOCK_JUMP_S = 2.0
_HEALTHY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How a live source is read.

    Raises:
        UsageError: A field is out of its range.
    """

    fps: float | None = 5.0
    """Frames a second that are scored; None: all of them."""
    phase: float = 0.0
    """Where in an interval of `fps` frames are taken after the first, [0, 1); see `unmask.sampler`."""
    open_timeout_s: float = 5.0
    """For a connection to be made and its first packets to come."""
    stall_s: float = 2.0
    """A source that is silent for so long has stalled, and is connected to again."""
    queue_frames: int = 8
    """Frames that may wait; the oldest gives way."""
    retry: Retry = "always"
    """`established`: a source that never gave a frame is not tried again."""
    first_retry_s: float = 0.5
    """Bound of the first wait before a reconnection; it doubles."""
    last_retry_s: float = 30.0
    """Greatest bound, and the wait after a refusal that a person must mend."""
    transport: Transport = "tcp"
    """How RTSP's packets travel. Always tcp where private addresses are refused."""
    ca_file: Path | None = None
    """Certificates to trust in place of the system's."""
    speed: float = 1.0
    """A file is played so many times as fast as it is."""
    lossless: bool = False
    """A file waits where its frames are not taken in time; none of them is dropped."""

    def __post_init__(self) -> None:
        positive = (self.open_timeout_s, self.stall_s, self.queue_frames, self.speed, self.first_retry_s)
        if not all(value > 0 and math.isfinite(value) for value in positive) or self.last_retry_s < self.first_retry_s:
            raise UsageError(f"times, speed and length of the queue are above 0; got {self}")
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise UsageError(f"--fps must be above 0; got {self.fps:g}")
        if not 0 <= self.phase < 1:
            raise UsageError(f"the phase of a stream lies in [0, 1); got {self.phase:g}")
        if self.retry not in get_args(Retry) or self.transport not in get_args(Transport):
            raise UsageError(f"--transport is tcp or udp, retry always or established; got {self}")
        if self.ca_file is not None and not self.ca_file.is_file():
            raise UsageError(f"{self.ca_file} does not exist; give a file of certificates")

    def limits(self) -> Limits:
        """What of this a single connection has to know."""
        return Limits(
            open_timeout_s=self.open_timeout_s, stall_s=self.stall_s, transport=self.transport, ca_file=self.ca_file
        )


class StreamSource:
    """A live source, read by a thread of its own.

    Args:
        address: rtsp(s)://, http(s):// (HLS too), a webcam's device, or a file, which is played at its own pace.
        options: How.
        policy: Where it may connect to.
        clock_s: At which time of the stream its first frame is; above 0 where the stream began in another process.

    Attributes:
        shown: The address as it may be shown and stored: without user and password.
        queue: What it gives.
        state: What it is doing.
        reconnects: How often it was connected to again, by why it was lost.

    Raises:
        UsageError: The address names nothing that can be played.
        MediaError: It names a file that does not exist.
    """

    def __init__(
        self,
        address: str,
        options: StreamOptions | None = None,
        policy: AddressPolicy | None = None,
        *,
        clock_s: float = 0.0,
    ) -> None:
        self.kind = kind_of(address)
        self.shown = without_password(address)
        self.options, self._policy, self._address = options or StreamOptions(), policy or AddressPolicy(), address
        self.queue = FrameQueue(self.options.queue_frames)
        self.state = StreamState.CONNECTING
        self.reconnects: Counter[Reason] = Counter()
        self._clock = _Clock(clock_s, keeps_times=self.kind is Kind.FILE)
        self._to_rgb = RgbConverter()
        self._index, self._size = 0, (0, 0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unmask-stream", daemon=True)

    def __repr__(self) -> str:
        return f"StreamSource({self.shown!r}, {self.state})"

    def start(self) -> None:
        """Begin to connect. Once."""
        self._thread.start()

    def close(self, wait_s: float | None = 0.0) -> bool:
        """Give it up, whatever it is doing; frames that still wait are lost as interrupted.

        The thread ends by itself: at once, or where it is waiting for the network within `stall_s` or
        `open_timeout_s`.

        Args:
            wait_s: Wait so long for the thread; None: for as long as it takes.

        Returns:
            Whether the thread has ended.
        """
        self._stopping.set()
        self.queue.close()
        if self._thread.ident is not None:
            self._thread.join(wait_s)
        return not self._thread.is_alive()

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(first_s=self.options.first_retry_s, most_s=self.options.last_retry_s, healthy_s=_HEALTHY_S)
        try:
            while not self._stopping.is_set():
                lived = _Lived()
                error = self._connection(lived)
                if self._stopping.is_set() or self._is_over(error):
                    return
                assert error is not None
                if error.reason is Reason.STREAM_STALLED:
                    self._change(StreamState.STALLED, error)
                wait_s = backoff.wait_s(error.reason, lived_s=lived.for_s, away_s=self._clock.away_s)
                self._change(StreamState.RECONNECTING, error, retry_in_s=wait_s)
                self.reconnects[error.reason] += 1
                self._stopping.wait(wait_s)
        except Exception as error:
            # Where it happened, not what it says: that may quote the address.
            where = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("%s while reading %s:\n%s", type(error).__name__, self.shown, where)
            ours = f"{self.shown} cannot be read any more: {type(error).__name__}"
            self._change(StreamState.FAILED, MediaError(Reason.INTERNAL, ours))
        finally:
            self.queue.close(drop=self._stopping.is_set())

    def _is_over(self, error: MediaError | None) -> bool:
        if error is None:
            self._change(StreamState.ENDED)
            return True
        hopeless = self.kind is Kind.FILE or (self.options.retry == "established" and not self._clock.has_begun)
        if hopeless:
            self._change(StreamState.FAILED, error)
        return hopeless

    def _change(self, state: StreamState, error: MediaError | None = None, *, retry_in_s: float | None = None) -> None:
        self.state = state
        reason, message = (error.reason, error.message) if error else (None, None)
        self.queue.put(StateChange(state, reason, message, retry_in_s))

    def _connection(self, lived: "_Lived") -> MediaError | None:
        """Connect, and read to the end: why it ended, or None at an end at which nothing is wrong."""
        self._change(StreamState.CONNECTING)
        try:
            with Connection(self._address, self.options.limits(), self._policy, self._stopping.is_set) as connection:
                if not self._stopping.is_set():
                    self._read(connection, lived)
        except MediaError as error:
            if self._clock.has_begun:
                self._clock.lose(error)
            return error
        return None

    def _read(self, connection: Connection, lived: "_Lived") -> None:
        sampler, media = Sampler(self.options.fps, self.options.phase), connection.media()
        pace = _Pace(self.options.speed if connection.kind is Kind.FILE else 1.0) if connection.needs_pace else None
        self._clock.connect()
        for picture in connection.pictures(sampler, self._stopping.is_set):
            if pace is not None and self._stopping.wait(pace.wait_s(picture.pts_s)):
                return
            if not lived.began_s:
                lived.began_s = time.monotonic()
                self.state = StreamState.LIVE
                self.queue.put(StateChange(StreamState.LIVE, media=media))
            self._take(picture)

    def _take(self, picture: Picture) -> None:
        now_s, last_s = time.monotonic(), self._clock.last_s
        pts_s, gap = self._clock.tell(picture.pts_s, now_s)
        if gap is not None:
            self.queue.put(gap)
        # Where the source's clock jumped, the stream's did not: no more were due than there was time for.
        lost = min(picture.lost, math.ceil((pts_s - last_s) * (self.options.fps or 0.0)))
        if lost > 0:
            self.queue.put(Lost(pts_s, Reason.DECODE_FAILED, lost))
            self._index += lost
        index, self._index = self._index, self._index + 1
        if picture.is_damaged:
            self.queue.put(Lost(pts_s, Reason.CORRUPT_FRAME))
            return
        image_HWC = orientation_of(picture.frame).apply(self._to_rgb(picture.frame))
        size, self._size = self._size, image_HWC.shape[:2]
        if any(size) and size != self._size:
            sizes = f"{size[1]}x{size[0]} to {self._size[1]}x{self._size[0]}"
            self.queue.put(Gap(Reason.RESOLUTION_CHANGED, pts_s, pts_s, f"The pictures went from {sizes}."))
        waits = self.options.lossless and self.kind is Kind.FILE
        self.queue.put(LiveFrame(Frame(image_HWC, pts_s, index), now_s), wait=waits)


class _Lived:
    """For how long one connection gave pictures."""

    began_s = 0.0

    @property
    def for_s(self) -> float:
        return time.monotonic() - self.began_s if self.began_s else 0.0


class _Pace:
    """Holds pictures back to when they are to be shown."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._origin_s: float | None = None

    def wait_s(self, pts_s: float) -> float:
        now_s, due_s = time.monotonic(), pts_s / self._speed
        if self._origin_s is None or abs(self._origin_s + due_s - now_s) > 10.0:
            self._origin_s = now_s - due_s  # at the beginning, or where the source's clock jumped
        return max(0.0, self._origin_s + due_s - now_s)


class _Clock:
    """From each connection's times to the stream's, which only rise."""

    def __init__(self, start_s: float, *, keeps_times: bool) -> None:
        self._start_s, self._keeps_times = start_s, keeps_times
        self._begun_s: float | None = None
        self._offset_s: float | None = None
        self._last_s, self._last_now_s = 0.0, time.monotonic()
        self._lost: tuple[Reason, str] | None = None

    @property
    def has_begun(self) -> bool:
        return self._begun_s is not None

    @property
    def last_s(self) -> float:
        """The stream's time of the last picture."""
        return self._last_s

    @property
    def away_s(self) -> float:
        """For how long there has been no picture; since the first try where there never was one."""
        return time.monotonic() - self._last_now_s

    def connect(self) -> None:
        """A new connection, with a clock of its own."""
        self._offset_s = None

    def lose(self, error: MediaError) -> None:
        """The connection is lost: what comes next lies after a gap. The first reason tells why."""
        self._lost = self._lost or (error.reason, error.message)

    def tell(self, pts_s: float, now_s: float) -> tuple[float, Gap | None]:
        """The stream's time of a picture, and the gap that it ends."""
        gap = None
        if self._begun_s is None:
            self._begun_s = now_s
            self._offset_s = 0.0 if self._keeps_times and not self._start_s else self._start_s - pts_s
        elif self._offset_s is None or self._has_jumped(pts_s, now_s):
            if self._offset_s is not None:
                self._lost = self._lost or (Reason.OUT_OF_ORDER, "The source set its clock anew.")
            at_s = self._last_s + 1e-3
            if not self._keeps_times:
                at_s = max(self._start_s + now_s - self._begun_s, at_s)
            self._offset_s = at_s - pts_s
            reason, message = self._lost or (Reason.STREAM_DISCONNECTED, "The connection was lost.")
            gap, self._lost = Gap(reason, self._last_s, at_s, message), None
        assert self._offset_s is not None
        self._last_s, self._last_now_s = pts_s + self._offset_s, now_s
        return self._last_s, gap

    def _has_jumped(self, pts_s: float, now_s: float) -> bool:
        assert self._offset_s is not None
        step_s = pts_s + self._offset_s - self._last_s
        if step_s <= 0 or self._keeps_times:
            return step_s <= 0
        return abs(step_s - (now_s - self._last_now_s)) > _CLOCK_JUMP_S
