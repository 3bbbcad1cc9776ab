"""Frames that a program or a browser pushes, as a live source."""

import io
import threading
import time

import numpy as np
from numpy.typing import NDArray

from unmask.errors import MediaError, Reason
from unmask.frame_queue import FrameQueue, LiveFrame, Lost, StateChange, StreamState
from unmask.records import Frame
from unmask.sampler import Sampler
from unmask.streams import StreamOptions

__all__ = ["PushSource"]

_MOST_PIXELS = 7680 * 4320


class PushSource:
    """A live source that is given its frames. Fills the same kind of queue as `StreamSource`.

    Every frame that is pushed and due counts as received; those between two samples do not.

    Args:
        options: Its rate and the length of its queue count.
        shown: What it is called.
        clock_s: Added to all times; above 0 where the stream began in another process.

    Attributes:
        queue: What it gives.
        state: What it is doing.
    """

    def __init__(self, options: StreamOptions | None = None, *, shown: str = "push", clock_s: float = 0.0) -> None:
        self.options, self.shown = options or StreamOptions(), shown
        self.queue = FrameQueue(self.options.queue_frames)
        self.state = StreamState.CONNECTING
        self._sampler = Sampler(self.options.fps)
        self._clock_s, self._last_s, self._index = clock_s, -np.inf, 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Wait for the first frame."""
        self.queue.put(StateChange(self.state))

    def push_jpeg(self, data: bytes, pts_s: float) -> bool:
        """Push a picture as JPEG, PNG or WebP; it is decoded only if it is due.

        Args:
            data: The file's bytes.
            pts_s: When it is shown, in seconds, after the one before.

        Returns:
            Whether it will be scored. What cannot be decoded is lost, as media_unreadable.
        """
        with self._lock:
            if not self._is_due(pts_s):
                return False
            try:
                image_HWC = _decoded(data)
            except MediaError as error:
                self._lose(pts_s, error.reason)
                return False
            return self._put(image_HWC, pts_s)

    def push_rgb(self, image_HWC: NDArray[np.uint8], pts_s: float) -> bool:
        """Push a picture as pixels, RGB uint8 (H, W, 3); it must not be changed afterwards. As `push_jpeg`."""
        with self._lock:
            return self._is_due(pts_s) and self._put(image_HWC, pts_s)

    def end(self) -> None:
        """No more frames will come; those that wait are still scored."""
        if not self.queue.is_closed:
            self.state = StreamState.ENDED
            self.queue.put(StateChange(self.state))
            self.queue.close(drop=False)

    def close(self, wait_s: float | None = 0.0) -> bool:  # noqa: ARG002 - as all sources
        """Give it up; frames that still wait are lost as interrupted."""
        self.queue.close()
        return True

    def _is_due(self, pts_s: float) -> bool:
        if self.queue.is_closed:
            return False
        if not pts_s > self._last_s:
            # NaN too.
            self._lose(max(self._last_s, 0.0), Reason.OUT_OF_ORDER)
            return False
        self._last_s = pts_s
        return self._sampler.take(pts_s) is not None

    def _lose(self, pts_s: float, reason: Reason) -> None:
        self.queue.put(Lost(pts_s + self._clock_s, reason))
        self._index += 1

    def _put(self, image_HWC: NDArray[np.uint8], pts_s: float) -> bool:
        if self.state is not StreamState.LIVE:
            self.state = StreamState.LIVE
            height, width = image_HWC.shape[:2]
            media = {"container": "push", "codec": None, "pixel_format": "rgb24", "width": width, "height": height}
            self.queue.put(StateChange(self.state, media={**media, "rate_fps": None}))
        self.queue.put(LiveFrame(Frame(image_HWC, pts_s + self._clock_s, self._index), time.monotonic()))
        self._index += 1
        return True


def _decoded(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise MediaError(Reason.TOO_LARGE, f"a picture of {picture.width}x{picture.height} is too large")
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return np.ascontiguousarray(upright, np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise MediaError(Reason.MEDIA_UNREADABLE, "a picture that was pushed cannot be decoded") from None
