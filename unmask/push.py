"""Frames that a program or a browser pushes, as a live source."""

import io
import math
import threading
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from unmask.access_units import AccessUnits, UnitPicture, is_annex_b
from unmask.errors import MediaError, Reason
from unmask.frame_queue import FrameQueue, Gap, LiveFrame, Lost, StateChange, StreamState
from unmask.picture import RgbConverter, orientation_of
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
        self._clock_s, self._last_s, self._index = clock_s, -math.inf, 0
        self._size = (0, 0)
        self._units: AccessUnits | None = None
        self._to_rgb = RgbConverter()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Wait for the first frame."""
        self.queue.put(StateChange(self.state))

    def push(self, data: bytes, pts_s: float) -> bool:
        """Push what a caller sent: `push_h264` where it begins with a start code, else `push_jpeg`."""
        return self.push_h264(data, pts_s) if is_annex_b(data) else self.push_jpeg(data, pts_s)

    def push_h264(self, data: bytes, pts_s: float) -> bool:
        """Push a picture as an access unit of H.264 (Annex B), in the order of decoding; each is decoded.

        Args:
            data: The unit: one picture, after the parameter sets that it needs where they are new.
            pts_s: When the picture is shown, in seconds, after all that came out of the decoder before.

        Returns:
            Whether a picture came out that will be scored: this one, or an earlier one where pictures are reordered.
            What cannot be decoded is lost, as media_unreadable or decode_failed; what damage may have reached, as
            corrupt_frame.
        """
        with self._lock:
            if self.queue.is_closed:
                return False
            self._units = self._units or AccessUnits(_MOST_PIXELS)
            return self._take(self._units.decode(data, pts_s))

    def push_jpeg(self, data: bytes, pts_s: float) -> bool:
        """Push a picture as JPEG, PNG or WebP; it is decoded only if it is due.

        Args:
            data: The file's bytes.
            pts_s: When it is shown, in seconds, after the one before.

        Returns:
            Whether it will be scored. What cannot be decoded is lost, as media_unreadable.
        """
        with self._lock:
            self._flush()
            if not self._is_due(pts_s):
                return False
            try:
                image_HWC = _decoded(data)
            except MediaError as error:
                self._lose(pts_s, error.reason)
                return False
            return self._put(image_HWC, pts_s, time.monotonic(), "rgb24")

    def push_rgb(self, image_HWC: NDArray[np.uint8], pts_s: float) -> bool:
        """Push a picture as pixels, RGB uint8 (H, W, 3); it must not be changed afterwards. As `push_jpeg`."""
        with self._lock:
            self._flush()
            return self._is_due(pts_s) and self._put(image_HWC, pts_s, time.monotonic(), "rgb24")

    def end(self) -> None:
        """No more frames will come; those that wait are still scored."""
        with self._lock:
            if not self.queue.is_closed:
                self._flush()
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
        if not self._last_s < pts_s < math.inf:
            # NaN too.
            self._lose(max(self._last_s, 0.0), Reason.OUT_OF_ORDER)
            return False
        self._last_s = pts_s
        return self._sampler.take(pts_s) is not None

    def _lose(self, pts_s: float, reason: Reason) -> None:
        self.queue.put(Lost(pts_s + self._clock_s, reason))
        self._index += 1

    def _flush(self) -> None:
        """Bring out what the decoder of H.264 holds: another kind of picture comes, or nothing any more."""
        if self._units is not None:
            self._take(self._units.flush())

    def _take(self, pictures: Iterable[UnitPicture]) -> bool:
        """Queue what came of units; whether a picture was among it that will be scored."""
        taken = False
        for pts_s, arrived_s, frame, reason in pictures:
            if frame is None:
                assert reason is not None
                self._lose(pts_s if math.isfinite(pts_s) else max(self._last_s, 0.0), reason)
            elif self._is_due(pts_s):
                image_HWC = orientation_of(frame).apply(self._to_rgb(frame))
                taken = self._put(image_HWC, pts_s, arrived_s, frame.format.name, codec="h264")
        return taken

    def _put(
        self, image_HWC: NDArray[np.uint8], pts_s: float, arrived_s: float, pixels: str, *, codec: str | None = None
    ) -> bool:
        height, width = image_HWC.shape[:2]
        if self.state is not StreamState.LIVE:
            self.state = StreamState.LIVE
            media = {"container": "push", "codec": codec, "pixel_format": pixels, "width": width, "height": height}
            self.queue.put(StateChange(self.state, media={**media, "rate_fps": None}))
        size, self._size = self._size, (height, width)
        if any(size) and size != self._size:
            at_s, sizes = pts_s + self._clock_s, f"{size[1]}x{size[0]} to {width}x{height}"
            self.queue.put(Gap(Reason.RESOLUTION_CHANGED, at_s, at_s, f"The pictures went from {sizes}."))
        self.queue.put(LiveFrame(Frame(image_HWC, pts_s + self._clock_s, self._index), arrived_s))
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
    except MediaError:
        raise
    except Exception:  # Pillow lets through whatever damaged metadata cause
        raise MediaError(Reason.MEDIA_UNREADABLE, "a picture that was pushed cannot be decoded") from None
