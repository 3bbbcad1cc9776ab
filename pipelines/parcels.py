"""What travels from stage to stage: one row is one parcel, so that a block is a parcel, too.

Parcels go between processes of one run only; they hold nothing that came from outside but pixels and texts.

Axes: B bytes, H rows, W columns, C = 3 channels, D features.
"""

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.progress import Receipt
from unmask.errors import Reason
from unmask.planes import PlaneHeader
from unmask.records import VideoInfo
from unmask.video import Missing

__all__ = ["QUARANTINED", "FaceRecord", "FrameNote", "Outcome", "Parcel", "Part", "from_row", "to_row"]

QUARANTINED = frozenset({Reason.DECODER_CRASHED, Reason.DECODER_HUNG, Reason.WORKER_LOST})
"""Why a video is not tried again: it kills or hangs the process that works on it."""


class Part(NamedTuple):
    """A frame batch of a shard: what is committed as one file.

    Args:
        video: Position of the video in its shard.
        unit: Work unit of the video.
        units: How many the video has.
        batch: Frame batch of the unit.
        batches: How many the unit has.
    """

    video: int
    unit: int
    units: int
    batch: int
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a video that gave nothing."""

    video: int
    """Position in its shard."""
    status: str
    """`failed` or `quarantined`."""
    reason: Reason
    message: str
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameNote:
    """What became of a frame that was asked for."""

    index: int
    pts_s: float
    reason: Reason | None
    """Why it was not looked at to be scored; a damaged one may have faces nonetheless."""
    cut: bool = False
    """A scene cut lies before it."""


@dataclass(slots=True, kw_only=True, eq=False)
class FaceRecord:
    """One face on its way to the tables."""

    index: int
    rank: int
    pts_s: float
    is_corrupt: bool
    box_4: NDArray[np.float32]
    landmarks_K2: NDArray[np.float32]
    probability: float
    sharpness: float
    """In [0, 1], see `unmask.quality`."""
    transform_23: NDArray[np.float32]
    width: int
    height: int
    crop: bytes | None
    """The encoded crop."""
    inputs: list[NDArray[np.uint8]]
    """What each backbone shall see, uint8 (H, W, C)."""
    features: list[NDArray[np.float32]] = field(default_factory=list)
    """What each backbone said, float32 (D,)."""


@dataclass(slots=True, kw_only=True, eq=False)
class Parcel:
    """A frame batch, first with its pictures, then with its faces; or only news of videos."""

    shard: int
    part: Part | None = None
    """None where the parcel brings only news."""
    known: tuple[Part, ...] = ()
    """Parts that were committed before."""
    outcomes: tuple[Outcome, ...] = ()
    """Videos that gave nothing; these are committed with the parcel."""
    known_outcomes: tuple[Outcome, ...] = ()
    """Those that were committed before."""
    video: str = ""
    info: VideoInfo | None = None
    content_id: str = ""
    """Names the file by its content, where that is wanted."""
    attempts: int = 1
    follow: bool = False
    """Frames lie so close that faces are followed."""
    items: list[PlaneHeader | Missing] = field(default_factory=list)
    """The frames, in order; the bytes of those that there are travel beside."""
    boxes: dict[int, NDArray[np.float32]] | None = None
    """Boxes (N, 4) by frame that stand in for a search."""
    frames: list[FrameNote] = field(default_factory=list)
    faces: list[FaceRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent, by stage."""
    receipt: Receipt | None = None
    """What it came to, once it is committed."""
    fatal: str | None = None
    """Why the run cannot go on."""


_SCHEMA = pa.schema([("parcel", pa.large_binary()), ("pixels", pa.large_binary())])


def to_row(parcel: Parcel, pixels: memoryview | bytes = b"") -> pa.Table:
    """A block of one row.

    Args:
        parcel: What travels.
        pixels: The planes of its frames, one after the other.
    """
    # Buffers of their own: Arrow takes them as they are.
    head = pickle.dumps(parcel, protocol=5)
    return pa.table([_cell(head), _cell(pixels)], schema=_SCHEMA)


def _cell(data: memoryview | bytes) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])


def from_row(table: pa.Table) -> Iterator[tuple[Parcel, memoryview]]:
    """The parcels of a block, and the planes of their frames, uncopied."""
    for heads, pixels in zip(_cells(table["parcel"]), _cells(table["pixels"]), strict=True):
        yield cast(Parcel, pickle.loads(heads)), pixels  # noqa: S301  of our own processes


def _cells(column: pa.ChunkedArray) -> Iterator[memoryview]:
    """The values in place: Arrow's scalars would copy them."""
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        for start, stop in itertools.pairwise(bounds.tolist()):
            yield memoryview(data)[start:stop] if data is not None else memoryview(b"")
