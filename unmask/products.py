"""What a preprocessed dataset looks like on disk: its tables, and how to read them. Written by `pipelines`.

    job.json               the configuration, and its digest
    manifest.parquet       the videos, in order; consecutive ones make a *shard*
    videos/00000.parquet   one row a video of the shard, with status, reason and the frames that were asked for; written
                           last: where it is, the shard is whole
    faces/00000.parquet    one row a face, by video, frame and face
    features/<key>/        the same rows, with the features of one backbone; key.json says all that shaped them
    crops/                 tars (00000.tar, as WebDataset reads them) or images (<video>/<frame>_<face>.png)
    scores/00000.parquet   one row a video, where a model scored them

Axes: D features, H rows, W columns, C = 3 channels in RGB order.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unmask.errors import DamagedError, StorageError
from unmask.storage import Store

__all__ = ["ASKED", "FACES", "RESULTS", "Products", "features_schema", "mask_name", "shard_name"]

RESULTS = pa.schema(
    [
        pa.field("status", pa.string(), nullable=False),  # done, empty, failed, quarantined
        pa.field("reason", pa.string()),
        pa.field("message", pa.string()),
        pa.field("planned", pa.int32(), nullable=False),
        pa.field("decoded", pa.int32(), nullable=False),
        pa.field("corrupt", pa.int32(), nullable=False),
        pa.field("missing", pa.int32(), nullable=False),
        pa.field("faces", pa.int32(), nullable=False),
        pa.field("tracks", pa.int32(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("duration_s", pa.float64()),
        pa.field("rate_fps", pa.float64()),
        pa.field("codec", pa.string()),
        pa.field("frames", pa.list_(pa.int32()), nullable=False),  # asked for: positions in order of presentation
        pa.field("frame_pts_s", pa.list_(pa.float64()), nullable=False),
        pa.field("frame_reasons", pa.list_(pa.string()), nullable=False),  # null where one was looked at, faces or none
        pa.field("config", pa.string(), nullable=False),
    ]
)
"""The columns that follow the manifest's in `videos/`."""

ASKED = ("frames", "frame_pts_s", "frame_reasons")
"""Those of them that list the frames of a video."""

FACES = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),  # position in order of presentation
        pa.field("face", pa.int16(), nullable=False),  # rank in its frame, most probable first
        pa.field("pts_s", pa.float64(), nullable=False),
        pa.field("box", pa.list_(pa.float32(), 4), nullable=False),  # x1, y1, x2, y2 in pixels of the frame
        pa.field("landmarks", pa.list_(pa.float32(), 10), nullable=False),  # x, y of five points, pixels of the frame
        pa.field("probability", pa.float32(), nullable=False),
        pa.field("sharpness", pa.float32()),  # 0 to 1, see unmask.quality; null where it is not known
        pa.field("track", pa.int32()),  # null in a damaged frame
        pa.field("after_gap", pa.bool_(), nullable=False),
        pa.field("is_corrupt", pa.bool_(), nullable=False),
        pa.field("crop_transform", pa.list_(pa.float32(), 6), nullable=False),  # 2 x 3: pixel of crop -> pixel of frame
        pa.field("crop_landmarks", pa.list_(pa.float32(), 10), nullable=False),  # as landmarks, in pixels of the crop
        pa.field("crop_width", pa.int16(), nullable=False),
        pa.field("crop_height", pa.int16(), nullable=False),
        pa.field("crop", pa.string()),  # name of the image: <video>/<frame>_<face>.<format>
        pa.field("crop_file", pa.string()),  # file of the store that holds it
        pa.field("crop_offset", pa.int64()),  # where in that file
        pa.field("crop_bytes", pa.int32()),
        pa.field("model", pa.string(), nullable=False),  # digest of the detector: weights and settings
    ]
)
"""The columns of `faces/`."""


def features_schema(dim: int) -> pa.Schema:
    """The columns of `features/<key>/`: float16 (D,) a face."""
    return pa.schema([*(FACES.field(n) for n in ("video", "frame", "face")), ("feature", pa.list_(pa.float16(), dim))])


def shard_name(folder: str, shard: int) -> str:
    """The Parquet file of a shard."""
    return f"{folder}/{shard:05d}.parquet"


def mask_name(crop: str) -> str:
    """The file of a crop's difference mask: `masks/<video>/<frame>_<face>_diff.png`."""
    return f"masks/{PurePosixPath(crop).with_suffix('')}_diff.png"


class Products:
    """Reads what a run of `unmask preprocess` wrote.

    Args:
        store: Where it lies.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def shards(self) -> list[int]:
        """The shards that are whole."""
        names = (PurePosixPath(name) for name in self.store.names("videos"))
        return sorted(int(name.stem) for name in names if name.suffix == ".parquet" and name.stem.isdigit())

    def videos(self, shard: int) -> pa.Table:
        """The videos of a shard, in the order of the manifest: its columns and `RESULTS`."""
        return self.store.read_table(shard_name("videos", shard))

    def faces(self, shard: int) -> pa.Table:
        """The faces of a shard (`FACES`), by video in the order of the manifest, frame and face."""
        return self.store.read_table(shard_name("faces", shard))

    def faces_digest(self, shard: int) -> str:
        """Stands for the table of a shard's faces. What is made of crops notes it, to know when it is out of date."""
        return hashlib.sha256(self.store.read(shard_name("faces", shard))).hexdigest()

    def features(self, key: str, shard: int) -> NDArray[np.float16]:
        """The features of a shard's faces, float16 (N, D), in the order of `faces`."""
        column = self.store.read_table(shard_name(f"features/{key}", shard), ["feature"])["feature"].combine_chunks()
        return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)

    def crops(self, faces: pa.Table) -> Iterator[tuple[Mapping[str, Any], NDArray[np.uint8]]]:
        """The crops of some rows of `faces`: each row, and its image as uint8 (H, W, C).

        Raises:
            DamagedError: A crop is no image.
            StorageError: A crop is missing or cannot be read.
        """
        opened: tuple[str, Any] | None = None
        try:
            for row in faces.to_pylist():
                if row["crop"] is None:
                    raise StorageError(
                        f"{self.store.shown} holds no crops; preprocess with `crops` among the products."
                    )
                if opened is None or opened[0] != row["crop_file"]:
                    if opened is not None:
                        opened[1].close()
                    opened = (row["crop_file"], self.store.open(row["crop_file"]))
                with self.store.telling("read", row["crop_file"]):
                    data = opened[1].read_at(row["crop_bytes"], row["crop_offset"])
                yield row, self._decoded(row, data)
        finally:
            if opened is not None:
                opened[1].close()

    def _decoded(self, row: Mapping[str, Any], data: bytes) -> NDArray[np.uint8]:
        pixels = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if len(pixels) else None
        if image is None:
            where = f"{self.store.shown}/{row['crop_file']}"
            raise DamagedError(f"{where} is damaged where {row['crop']} lies; preprocess that shard again.")
        return np.ascontiguousarray(image[..., ::-1])
