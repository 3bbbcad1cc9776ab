"""Finished runs whose crops are cut anew, as `unmask preprocess` cuts them with other options; faces may be tilted."""

from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config import CropOptions
from pipelines.detect import cut_out
from tests.products import portrait
from unmask.products import FACES, Products, shard_name
from unmask.storage import Store

__all__ = ["recut", "tilted"]


def tilted(landmarks_K2: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Landmarks turned about their middle."""
    middle, angle = landmarks_K2.mean(0), np.deg2rad(degrees)
    turn_22 = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray((landmarks_K2 - middle) @ turn_22.T + middle, np.float32)


def recut(store: Store, options: CropOptions, *, degrees: float = 0.0) -> None:
    """Cut every crop of a run anew, from `tests.products.portrait`.

    Args:
        store: A run of `finished_run` with `packing="files"`.
        options: Of the crops.
        degrees: Landmarks are turned by this first.
    """
    products = Products(store)
    for shard in products.shards():
        rows = [_recut(store, row, options, degrees) for row in products.faces(shard).to_pylist()]
        store.write_table(shard_name("faces", shard), pa.Table.from_pylist(rows, schema=FACES))


def _recut(store: Store, row: dict[str, Any], options: CropOptions, degrees: float) -> dict[str, Any]:
    box_4 = np.array(row["box"], np.float32)
    landmarks_K2 = tilted(np.array(row["landmarks"], np.float32).reshape(5, 2), degrees)
    image_HWC, to_frame_23 = cut_out(portrait(row["frame"]), box_4, landmarks_K2, options)
    in_crop_K2 = np.linalg.solve(to_frame_23[:, :2].astype(np.float64), (landmarks_K2 - to_frame_23[:, 2]).T).T
    ok, data = cv2.imencode(".png", image_HWC[..., ::-1])
    assert ok
    store.write(row["crop_file"], data.tobytes())
    return row | {
        "landmarks": landmarks_K2.ravel().tolist(),
        "crop_transform": to_frame_23.ravel().tolist(),
        "crop_landmarks": in_crop_K2.ravel().tolist(),
        "crop_width": image_HWC.shape[1],
        "crop_height": image_HWC.shape[0],
        "crop_bytes": len(data),
    }
