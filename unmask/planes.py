"""Decoded pictures as bytes that cross to another process and become the same RGB there.

A 1080p picture is 6.2 MB in RGB and 3.1 MB as its decoder's own YUV 4:2:0 planes. But libswscale's colours hang on more
than the planes: its general scaler, which converts 10-bit, semi-planar and odd-height pictures, asks where the chroma
samples lie, and all of it asks whether the lines are interlaced; PyAV can set neither on a picture that is made anew.
Its special converters for 8-bit 4:2:0 and 4:2:2 ask for the matrix and the range alone. So pictures of those kinds
travel as planes, and all others as the RGB that they become, converted where they were decoded. That costs little:
4:4:4 and 10-bit 4:2:0 are as large as RGB, and only interlaced video doubles.

Axes: B bytes, H rows, W columns.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Self, TypeAlias, TypedDict

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from unmask.picture import Orientation, RgbConverter, orientation_of
from unmask.records import Frame, VideoInfo

__all__ = ["Allocate", "PlaneHeader", "Planes", "own_memory", "picture_bytes"]

Allocate: TypeAlias = Callable[[int], NDArray[np.uint8]]
"""Gives room for so many bytes: uint8 of shape (B,), C-contiguous and writable."""

_RGB = "rgb24"
# By how much width and height of the second and third plane are shifted.
_CHROMA_SHIFTS = {"yuv420p": (1, 1), "yuvj420p": (1, 1), "yuv422p": (1, 0), "yuvj422p": (1, 0)}


def own_memory(size: int) -> NDArray[np.uint8]:
    """Fresh memory: uint8 of shape (size,)."""
    return np.empty(size, np.uint8)


class PlaneHeader(TypedDict):
    """What `Planes` are, beside their bytes: flat, and ready for `json.dumps` or a table."""

    format: str
    width: int
    height: int
    colorspace: int
    color_range: int
    transposed: bool
    mirrored_x: bool
    mirrored_y: bool
    pts_s: float
    index: int
    is_corrupt: bool


@dataclass(frozen=True, slots=True, eq=False)
class Planes:
    """One decoded picture, not yet upright: its planes one after the other, without padding between the rows.

    Args:
        data_B: uint8, shape (B,), C-contiguous. May lie in memory that others will overwrite.
        format: FFmpeg's name of the pixel format: 8-bit planar YUV 4:2:0 or 4:2:2, or rgb24.
        width: Of the picture as it is stored.
        height: Of the picture as it is stored.
        colorspace: FFmpeg's number of the YUV matrix.
        color_range: FFmpeg's number of the range of the values.
        orientation: How it is turned for display.
        pts_s: Presentation time in seconds from the container.
        index: Position in presentation order in the whole video, from 0.
        is_corrupt: The decoder reported damage in it or in what it was predicted from.
    """

    data_B: NDArray[np.uint8]
    format: str
    width: int
    height: int
    colorspace: int
    color_range: int
    orientation: Orientation
    pts_s: float
    index: int
    is_corrupt: bool = False

    def __post_init__(self) -> None:
        expected = _bytes(self.format, self.width, self.height)
        if self.data_B.dtype != np.uint8 or self.data_B.shape != (expected,):
            got = f"{self.data_B.dtype} of shape {self.data_B.shape}"
            raise ValueError(f"{self.width}x{self.height} {self.format} is uint8 of shape ({expected},); got {got}")

    def __repr__(self) -> str:
        size = f"{self.width}x{self.height} {self.format}"
        return f"Planes({size}, pts_s={self.pts_s:.3f}, index={self.index}, is_corrupt={self.is_corrupt})"

    @classmethod
    def of(
        cls,
        picture: VideoFrame,
        to_rgb: RgbConverter,
        *,
        pts_s: float,
        index: int,
        is_corrupt: bool = False,
        allocate: Allocate = own_memory,
    ) -> Self:
        """The planes of a picture as the decoder gave it.

        Args:
            picture: The picture.
            to_rgb: Converts it, where its planes alone do not say what its colours are.
            pts_s: Presentation time in seconds.
            index: Position in presentation order.
            is_corrupt: Whether it may be damaged.
            allocate: Gives the memory that the bytes go to.
        """
        width, height = picture.width, picture.height
        name = picture.format.name if _travels_as_planes(picture) else _RGB
        data_B = allocate(_bytes(name, width, height))
        if name == _RGB:
            data_B.reshape(height, width, 3)[...] = to_rgb(picture)
        else:
            for packed_HW, rows_HW in zip(_split(data_B, name, width, height), _rows(picture), strict=True):
                packed_HW[...] = rows_HW
        return cls(
            data_B=data_B,
            format=name,
            width=width,
            height=height,
            colorspace=int(picture.colorspace),
            color_range=int(picture.color_range),
            orientation=orientation_of(picture),
            pts_s=pts_s,
            index=index,
            is_corrupt=is_corrupt,
        )

    def header(self) -> PlaneHeader:
        """Everything but the bytes."""
        return {
            "format": self.format,
            "width": self.width,
            "height": self.height,
            "colorspace": self.colorspace,
            "color_range": self.color_range,
            "transposed": self.orientation.transposed,
            "mirrored_x": self.orientation.mirrored_x,
            "mirrored_y": self.orientation.mirrored_y,
            "pts_s": self.pts_s,
            "index": self.index,
            "is_corrupt": self.is_corrupt,
        }

    @classmethod
    def from_parts(cls, header: PlaneHeader, data: memoryview | bytes, offset: int = 0) -> Self:
        """The planes that lie in a buffer from `offset` on. Copies nothing.

        Raises:
            ValueError: The buffer is too short, or the format is none in which planes travel.
        """
        name, width, height = header["format"], header["width"], header["height"]
        return cls(
            data_B=np.frombuffer(data, np.uint8, _bytes(name, width, height), offset),
            format=name,
            width=width,
            height=height,
            colorspace=header["colorspace"],
            color_range=header["color_range"],
            orientation=Orientation(header["transposed"], header["mirrored_x"], header["mirrored_y"]),
            pts_s=header["pts_s"],
            index=header["index"],
            is_corrupt=header["is_corrupt"],
        )

    @classmethod
    def unpack(cls, headers: Iterable[PlaneHeader], data: memoryview | bytes) -> Iterator[Self]:
        """Pictures that lie one after the other in a buffer. Copies nothing.

        Raises:
            ValueError: As in `from_parts`.
        """
        offset = 0
        for header in headers:
            planes = cls.from_parts(header, data, offset)
            offset += len(planes.data_B)
            yield planes

    def to_frame(self, to_rgb: RgbConverter) -> Frame:
        """The frame that `VideoReader.frames` gives for this picture, bit for bit, in memory of its own."""
        if self.format == _RGB:
            stored_HWC = self.data_B.reshape(self.height, self.width, 3).copy()
        else:
            stored_HWC = to_rgb(self._to_picture())
        return Frame(self.orientation.apply(stored_HWC), self.pts_s, self.index, self.is_corrupt)

    def _to_picture(self) -> VideoFrame:
        picture = VideoFrame(self.width, self.height, self.format)
        picture.colorspace, picture.color_range = self.colorspace, self.color_range
        packed = _split(self.data_B, self.format, self.width, self.height)
        for rows_HW, packed_HW in zip(_rows(picture), packed, strict=True):
            rows_HW[...] = packed_HW
        return picture


def picture_bytes(info: VideoInfo) -> int:
    """How many bytes the planes of one picture of a video take, going by what its container says of it."""
    travels = info.pixel_format in _CHROMA_SHIFTS and not info.interlaced
    # Width and height may be exchanged here; then neither may be odd, or the picture may be taken for RGB.
    is_even = info.width % 2 == 0 and info.height % 2 == 0
    return _bytes(info.pixel_format if travels and is_even else _RGB, info.width, info.height)


def _travels_as_planes(picture: VideoFrame) -> bool:
    """Whether libswscale converts it by nothing but its samples, their matrix and their range."""
    is_special = picture.format.name in _CHROMA_SHIFTS and picture.height % 2 == 0 and not picture.interlaced_frame
    return is_special and all(plane.line_size > 0 for plane in picture.planes)


def _shapes(name: str, width: int, height: int) -> Sequence[tuple[int, int]]:
    """Rows and bytes a row of each plane."""
    if name == _RGB:
        return ((height, width * 3),)
    if name not in _CHROMA_SHIFTS:
        raise ValueError(f"planes travel as {', '.join(_CHROMA_SHIFTS)} or {_RGB}; got {name}")
    right, down = _CHROMA_SHIFTS[name]
    chroma = -(-height >> down), -(-width >> right)
    return (height, width), chroma, chroma


def _bytes(name: str, width: int, height: int) -> int:
    return sum(prod(shape) for shape in _shapes(name, width, height))


def _split(data_B: NDArray[np.uint8], name: str, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Each plane as rows of bytes, in place."""
    at = 0
    for shape in _shapes(name, width, height):
        yield data_B[at : at + prod(shape)].reshape(shape)
        at += prod(shape)


def _rows(picture: VideoFrame) -> Iterator[NDArray[np.uint8]]:
    """The rows of each plane of an 8-bit planar picture, in place and without their padding."""
    for plane in picture.planes:
        rows_HW: NDArray[np.uint8] = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
        yield rows_HW.reshape(-1, plane.line_size)[: plane.height, : plane.width]
