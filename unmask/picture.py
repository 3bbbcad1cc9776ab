"""A decoded picture as an array: RGB, upright.

The colours are those of `frame.to_ndarray(format="rgb24")`, bit for bit; for 4:4:4 they come by a shorter way. The
display matrix (rotation by quarter turns, mirroring) is applied, which PyAV does not do.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

__all__ = ["Orientation", "RgbConverter", "orientation_of"]


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture is turned for display: transposed first, then mirrored.

    Args:
        transposed: Rows become columns.
        mirrored_x: Left and right are exchanged (after the transposition).
        mirrored_y: Top and bottom are exchanged (after the transposition).
    """

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    @property
    def rotation(self) -> int:
        """Clockwise quarter turns in degrees (0, 90, 180, 270); a mirror image counts as its turned part."""
        if self.transposed:
            return 90 if self.mirrored_x else 270
        return 180 if self.mirrored_x and self.mirrored_y else 0

    def apply(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture upright, C-contiguous."""
        if self.transposed:
            image_HWC = image_HWC.transpose(1, 0, 2)
        if self.mirrored_x:
            image_HWC = image_HWC[:, ::-1]
        if self.mirrored_y:
            image_HWC = image_HWC[::-1]
        return np.ascontiguousarray(image_HWC)


def orientation_of(frame: VideoFrame) -> Orientation:
    """What the frame's display matrix says; turns by less than a quarter are left out."""
    side_data: Any = frame.side_data  # a mapping by type, which PyAV's stubs do not say
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32, 9).tolist()
    # The matrix takes (x, y) to (a x + c y, b x + d y).
    if b and c and not (a or d):
        return Orientation(transposed=True, mirrored_x=c < 0, mirrored_y=b < 0)
    if a and d and not (b or c):
        return Orientation(mirrored_x=a < 0, mirrored_y=d < 0)
    return Orientation()


class RgbConverter:
    """Converts frames to RGB. Keeps libswscale's tables from frame to frame; not for several threads at once."""

    def __init__(self) -> None:
        self._to_rgb = VideoReformatter()
        self._to_planes = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """RGB of shape (H, W, 3), uint8, C-contiguous, as stored: not turned."""
        if frame.format.name in ("yuv444p", "yuvj444p"):
            return self._by_planes(frame)
        rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1)
        image_HWC: NDArray[np.uint8] = np.ascontiguousarray(rgb.to_ndarray())
        return image_HWC

    def _by_planes(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """4:4:4 by way of planar RGB: the same sums, but libswscale has vector code for them only in planes."""
        import cv2  # here, for processes that only decode: it takes a quarter of their time to start

        planar = self._to_planes.reformat(frame, format="gbrp", threads=1)
        green, blue, red = (
            np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]  # type: ignore[call-overload]
            for plane in planar.planes
        )
        image_HWC = np.empty((frame.height, frame.width, 3), np.uint8)
        cv2.merge((red, green, blue), image_HWC)
        return image_HWC
