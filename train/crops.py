"""The crops that `preprocess` wrote, one at a time and in any order, cut down to what a model wants.

Axes: H rows, W columns, C = 3 channels in RGB order; K = 5 landmarks; boxes are x1, y1, x2, y2.
"""

import hashlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment import Picture
from train.catalogue import Catalogue, Place
from unmask.atomic import replacing
from unmask.errors import DamagedError, StorageError
from unmask.faces import alignment, crop, cut_corners, enlarge
from unmask.storage import Store
from unmask.transforms import Preprocessing

__all__ = ["CropReader"]

_MOST_OPEN = 128
"""Files that a process keeps open: with a file for each crop there are more than a system allows."""


class CropReader:
    """Reads crops by their number in a catalogue, in any number of threads. Each process opens files for itself.

    Args:
        catalogue: Whose crops.
        cache: A local folder for files of buckets, fetched whole when they are first needed; by default a temporary
            one, which processes that are forked share. Local files are read where they are.
    """

    def __init__(self, catalogue: Catalogue, cache: Path | None = None) -> None:
        self._catalogue, self._given = catalogue, cache
        self._cache = cache
        if cache is None and not all(store.is_local for store in catalogue.stores.values()):
            self._cache = Path(tempfile.mkdtemp(prefix="unmask-crops-"))
            weakref.finalize(self, _remove, self._cache, os.getpid())
        self._opened: dict[int, int] = {}
        weakref.finalize(self, _close, self._opened)

    def __reduce__(self) -> tuple[type["CropReader"], tuple[Catalogue, Path | None]]:
        return CropReader, (self._catalogue, self._given)

    def image(self, face: int) -> NDArray[np.uint8]:
        """The crop of a face as it was stored, uint8 (H, W, C).

        Raises:
            DamagedError: It is no image.
            StorageError: It is missing or cannot be read.
        """
        place = self._catalogue.place_of(face)
        try:
            data = self._read(place)
        except OSError as error:
            raise StorageError(f"{place.shown} cannot be read ({error.strerror})") from error
        pixels = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if len(pixels) == place.size > 0 else None
        if image is None:
            raise DamagedError(f"{place.shown} is damaged where the crop of {self._catalogue.name_of(face)} lies")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)

    def picture(self, face: int, preprocessing: Preprocessing) -> Picture:
        """The crop of a face as a model's preprocessing cuts it, with its landmarks; not yet resized.

        Raises:
            DamagedError: It is no image.
            StorageError: It is missing or cannot be read.
        """
        stored_HWC = self.image(face)
        box_4 = self._catalogue.box_in_crop(face).astype(np.float32)
        landmarks_K2 = self._catalogue.landmarks_N52[face]
        image_HWC = crop(stored_HWC, box_4, landmarks_K2, preprocessing)
        if preprocessing.align:
            matrix_23, _ = alignment(landmarks_K2, preprocessing.margin)
            to_result_23 = cv2.invertAffineTransform(matrix_23)
            moved_K2 = landmarks_K2 @ to_result_23[:, :2].T + to_result_23[:, 2]
        else:
            square = preprocessing.fit == "square"
            x1, y1, *_ = cut_corners(enlarge(box_4, preprocessing.margin, square=square))
            moved_K2 = landmarks_K2 - np.array([x1, y1])
        return Picture(image_HWC=image_HWC, landmarks_K2=moved_K2.astype(np.float32))

    def _read(self, place: Place) -> bytes:
        file = self._opened.get(place.file)
        if file is not None:
            return os.pread(file, place.size, place.offset)
        file = os.open(self._path(place.file), os.O_RDONLY | os.O_CLOEXEC)
        # Another thread may have opened it at the same time.
        is_kept = len(self._opened) < _MOST_OPEN and self._opened.setdefault(place.file, file) == file
        try:
            return os.pread(file, place.size, place.offset)
        finally:
            if not is_kept:
                os.close(file)

    def _path(self, file: int) -> Path:
        """Where a file lies on this machine; it is fetched if it is not there yet."""
        store, name = self._catalogue.files[file]
        if store.is_local:
            return store.local_path(name)
        assert self._cache is not None
        path = self._cache / _cached_name(store, name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as beside:
                beside.write_bytes(store.read(name))
        return path


def _cached_name(store: Store, name: str) -> str:
    """Of a file's copy: another one where the file was written anew, or where another dataset uses the cache too."""
    system, path = store.place(name)
    with store.telling("looked at", name):
        info = system.get_file_info(path)
    return hashlib.blake2b(f"{store.shown}/{name} {info.size} {info.mtime_ns}".encode(), digest_size=16).hexdigest()


def _close(opened: dict[int, int]) -> None:
    for file in opened.values():
        os.close(file)
    opened.clear()


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in one that was forked
        shutil.rmtree(folder, ignore_errors=True)
