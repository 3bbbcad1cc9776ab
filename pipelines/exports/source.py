"""What every export reads: a run's labelled videos with their faces, and the crops as bytes.

Axes: K = 5 landmarks.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import cv2
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from unmask.errors import Reason, StorageError
from unmask.products import ASKED, Products, shard_name
from unmask.storage import Store

__all__ = [
    "CropFiles",
    "ExportCount",
    "Row",
    "as_png",
    "encoded",
    "is_damaged",
    "labelled_videos",
    "landmarks_in_crop",
    "pixels",
    "video_rows",
]

Row = Mapping[str, Any]
"""A row of a table."""

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCount:
    """What an export wrote.

    Args:
        videos: Videos with at least one face in it.
        crops: Crops, each with its landmarks.
        diffs: Difference masks.
        left_out: Faces that are not in it, by reason: `unlabelled` (nobody says whether the video is a fake),
            `corrupt_frame`, `other_face` (the layout has room for one face a frame).
    """

    videos: int
    crops: int
    diffs: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


def video_rows(products: Products, columns: list[str]) -> Iterator[Row]:
    """Some columns of all videos, a shard at a time in memory."""
    for shard in products.shards():
        yield from products.store.read_table(shard_name("videos", shard), columns).to_pylist()


def labelled_videos(products: Products, left_out: Counter[str]) -> Iterator[tuple[Row, list[Row]]]:
    """Every labelled video that was looked at, with its faces, in the order of the manifest.

    What is left out is counted: faces of videos without a label. Faces in damaged frames are the caller's to leave out.
    """
    for shard in products.shards():
        faces = products.faces(shard)
        for video in products.videos(shard).drop_columns(list(ASKED)).to_pylist():
            if video["status"] not in ("done", "empty"):
                continue
            its_faces = faces.filter(pc.equal(faces["video"], video["video"]))
            if video["label"] is None:
                left_out["unlabelled"] += len(its_faces)
            else:
                yield video, its_faces.to_pylist()


class CropFiles:
    """Crops as they are stored, without decoding them. The file that was read last stays open; use it in a `with`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._opened: tuple[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened[1].close()

    def read(self, face: Row) -> bytes:
        """The file of one crop.

        Raises:
            StorageError: The run holds no crops, or this one cannot be read.
        """
        if face["crop"] is None:
            raise StorageError(f"{self._store.shown} holds no crops; preprocess with `crops` among the products.")
        if self._opened is None or self._opened[0] != face["crop_file"]:
            if self._opened is not None:
                self._opened[1].close()
            self._opened = (face["crop_file"], self._store.open(face["crop_file"]))
        data: bytes = self._opened[1].read_at(face["crop_bytes"], face["crop_offset"])
        if len(data) != face["crop_bytes"]:
            raise StorageError(f"{self._store.shown}/{face['crop_file']} is cut off; remove it and preprocess again.")
        return data


def pixels(data: bytes, face: Row) -> NDArray[np.uint8]:
    """A crop decoded, uint8 (H, W, 3), in OpenCV's order of colours.

    Raises:
        StorageError: It is damaged.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise StorageError(f"{face['crop']} in {face['crop_file']} is damaged; remove that file and preprocess again.")
    return np.asarray(image, np.uint8)


def as_png(data: bytes, face: Row) -> bytes:
    """A crop as a PNG file: as it is where it is one."""
    return data if data.startswith(_PNG) else encoded(pixels(data, face))


def encoded(image: NDArray[np.uint8]) -> bytes:
    """An image in OpenCV's order of colours as a PNG file."""
    ok, data = cv2.imencode(".png", image)
    assert ok
    return data.tobytes()


def landmarks_in_crop(face: Row) -> NDArray[np.float64]:
    """The five landmarks in pixels of the crop, float64 (K, 2); whole numbers are centres of pixels."""
    points_K2 = np.reshape(np.asarray(face["landmarks"], np.float64), (5, 2))
    transform_23 = np.reshape(np.asarray(face["crop_transform"], np.float64), (2, 3))
    return np.asarray(np.linalg.solve(transform_23[:, :2], (points_K2 - transform_23[:, 2]).T).T, np.float64)


def is_damaged(face: Row, left_out: Counter[str]) -> bool:
    """Whether a face is in a damaged frame; it is counted then."""
    if face["is_corrupt"]:
        left_out[Reason.CORRUPT_FRAME] += 1
    return bool(face["is_corrupt"])
