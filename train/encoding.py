"""Face crops through a real video encoder and back: what H.264 leaves of them at a constant rate factor (CRF).

Axes: T crops in order of time, H rows, W columns, C = 3 channels in RGB order.
"""

import io
from collections.abc import Sequence
from typing import Any, cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["reencoded"]

_RATE_FPS = 25
_LEAST_PX = 32


def reencoded(crops: Sequence[NDArray[np.uint8]], crf: int) -> list[NDArray[np.uint8]]:
    """Encode crops as the frames of one clip, decode it, and cut them out again.

    The encoder is x264 at its preset `medium`, in YUV 4:2:0, as videos are shared, but for its macroblock tree, which
    gives other bytes from run to run on pictures this small. Crops that differ in size lie in the upper left of frames
    as large as the largest, with their borders repeated: nothing is resized.

    Args:
        crops: uint8 (h, w, C) each, in order of time.
        crf: 0 to 51; more is worse.

    Returns:
        As many crops of the same sizes.
    """
    if not crops:
        return []
    height, width = (_even(max(crop.shape[axis] for crop in crops)) for axis in (0, 1))
    framed = (cv2.copyMakeBorder(c, 0, height - c.shape[0], 0, width - c.shape[1], cv2.BORDER_REPLICATE) for c in crops)
    data = io.BytesIO()
    with av.open(data, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=_RATE_FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium", "x264-params": "mbtree=0"}
        stream.thread_count = 1  # the same bytes on every machine
        for image_HWC in framed:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cast("Any", image_HWC), format="rgb24")))
        container.mux(stream.encode(None))
    data.seek(0)
    with av.open(data, "r") as source:
        decoded = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    return [
        np.ascontiguousarray(frame[: crop.shape[0], : crop.shape[1]], np.uint8)
        for frame, crop in zip(decoded, crops, strict=True)
    ]


def _even(side: int) -> int:
    return max(side + side % 2, _LEAST_PX)
