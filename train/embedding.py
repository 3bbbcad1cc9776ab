"""Features of stored crops, video by video: crops are read ahead, and pass the backbone in batches across videos.

Axes: N crops, D features, H rows, W columns, C = 3 channels in RGB order.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from train.crops import CropReader
from unmask.errors import StorageError
from unmask.models import ForgeryModel
from unmask.prefetch import prefetched
from unmask.transforms import Preprocessing, resize, to_tensor

__all__ = ["Change", "Embedded", "embedded", "read_crops"]

Change = Callable[[Sequence[NDArray[np.uint8]], NDArray[np.int64]], list[NDArray[np.uint8]]]
"""What is done to crops before they are resized: crops of one video in order of time, and their faces' numbers in the
catalogue. It gives as many of the same sizes."""

# Crops of a video that are in memory at once; a change sees as many of them together.
_CHUNK = 256
_AHEAD_BYTES = 64 * 1024**2
_READERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """The features of some faces of a video.

    Args:
        rows_N: Their numbers in the catalogue.
        features_ND: float32 (N, D); NaN where the crop is damaged.
        whole_N: bool (N,), the crop could be read, and what the model takes could be made of it.
        depth_failed: Those of `rows_N` that have no depth map, where a model takes one.
    """

    rows_N: NDArray[np.int64]
    features_ND: NDArray[np.float32]
    whole_N: NDArray[np.bool_]
    depth_failed: frozenset[int] = frozenset()


def embedded(
    model: ForgeryModel,
    preprocessing: Preprocessing,
    reader: CropReader,
    videos: Sequence[NDArray[np.int64]],
    *,
    batch: int,
    change: Change | None = None,
) -> Iterator[Embedded]:
    """Send crops through a backbone.

    Args:
        model: Runs where it is.
        preprocessing: The model's.
        reader: Of the crops.
        videos: Of each video, the numbers of its faces in the catalogue, in order of time.
        batch: Crops a pass.
        change: Done to the crops first.

    Yields:
        One item a video, in their order.
    """
    pictures = prefetched(
        _resized(preprocessing, reader, videos, change),
        cost=lambda picture: 1 if picture is None else picture.nbytes,
        limit=_AHEAD_BYTES,
    )
    features = _features(model, preprocessing, pictures, batch)
    try:
        for rows_N in videos:
            found = list(itertools.islice(features, len(rows_N)))
            whole_N = np.array([f is not None for f in found], np.bool_)
            features_ND = np.full((len(rows_N), model.dim), np.nan, np.float32)
            if whole_N.any():
                features_ND[whole_N] = np.stack([f for f in found if f is not None])
            yield Embedded(rows_N, features_ND, whole_N)
    finally:
        pictures.close()


def read_crops(
    reader: CropReader, rows_N: Iterable[int], preprocessing: Preprocessing, pool: ThreadPoolExecutor
) -> list[NDArray[np.uint8] | None]:
    """Crops as a model's preprocessing cuts them, not yet resized; None for a damaged one."""

    def read(row: int) -> NDArray[np.uint8] | None:
        try:
            return reader.picture(row, preprocessing).image_HWC
        except StorageError:
            return None

    return list(pool.map(read, rows_N))


def _resized(
    preprocessing: Preprocessing, reader: CropReader, videos: Sequence[NDArray[np.int64]], change: Change | None
) -> Iterator[NDArray[np.uint8] | None]:
    """The crops of all videos one after the other, in the model's size."""
    with ThreadPoolExecutor(_READERS, "unmask-crops") as pool:
        for rows_N in videos:
            for start in range(0, len(rows_N), _CHUNK):
                chunk_N = rows_N[start : start + _CHUNK]
                crops = read_crops(reader, chunk_N.tolist(), preprocessing, pool)
                if change is not None:
                    crops = _changed(crops, chunk_N, change)
                yield from (None if crop is None else resize(crop, preprocessing) for crop in crops)


def _changed(
    crops: list[NDArray[np.uint8] | None], rows_N: NDArray[np.int64], change: Change
) -> list[NDArray[np.uint8] | None]:
    whole = [n for n, crop in enumerate(crops) if crop is not None]
    changed = change([crop for crop in crops if crop is not None], rows_N[whole])
    out = list(crops)
    for n, crop in zip(whole, changed, strict=True):
        out[n] = crop
    return out


def _features(
    model: ForgeryModel, preprocessing: Preprocessing, pictures: Iterable[NDArray[np.uint8] | None], batch: int
) -> Iterator[NDArray[np.float32] | None]:
    """The features float32 (D,) of each picture; None for None."""
    device = next(model.parameters()).device
    pictures = iter(pictures)
    while chunk := list(itertools.islice(pictures, batch)):
        whole = [picture for picture in chunk if picture is not None]
        with torch.inference_mode():
            inputs = to_tensor(whole, preprocessing, device)
            features_ND = model.features(inputs).float().cpu().numpy() if whole else np.zeros((0, model.dim))
        found = iter(features_ND)
        yield from (None if picture is None else next(found) for picture in chunk)
