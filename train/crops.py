"""The crops that `preprocess` wrote, one at a time and in any order, cut down to what a model wants.

Axes: H rows, W columns, C = 3 channels in RGB order; K = 5 landmarks; boxes are x1, y1, x2, y2.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment import Picture
from train.catalogue import Catalogue
from unmask.atomic import replacing
from unmask.errors import StorageError
from unmask.faces import alignment, crop, cut_corners, enlarge
from unmask.transforms import Preprocessing

__all__ = ["CropReader"]


class CropReader:
    """Reads crops by their number in a catalogue. Each process opens the files that it needs for itself.

    Args:
        catalogue: Whose crops.
        cache: A local folder for files of buckets, fetched whole when they are first needed; a temporary one by
            default. Local files are read where they are.
    """

    def __init__(self, catalogue: Catalogue, cache: Path | None = None) -> None:
        self._catalogue = catalogue
        self._cache = cache
        self._opened: dict[int, int] = {}

    def __getstate__(self) -> Mapping[str, Any]:
        return {"_catalogue": self._catalogue, "_cache": self._cache, "_opened": {}}

    def image(self, face: int) -> NDArray[np.uint8]:
        """The crop of a face as it was stored, uint8 (H, W, C).

        Raises:
            StorageError: It is missing or damaged.
        """
        place = self._catalogue.place_of(face)
        try:
            data = os.pread(self._file(place.file), place.size, place.offset)
        except OSError as error:
            raise StorageError(f"{place.shown} cannot be read ({error.strerror})") from error
        pixels = np.frombuffer(data, np.uint8)
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if len(pixels) == place.size > 0 else None
        if image is None:
            raise StorageError(f"{place.shown} is damaged where the crop of {self._catalogue.name_of(face)} lies")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)

    def picture(self, face: int, preprocessing: Preprocessing) -> Picture:
        """The crop of a face as a model's preprocessing cuts it, with its landmarks; not yet resized.

        Raises:
            StorageError: It is missing or damaged.
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

    def _file(self, file: int) -> int:
        if file not in self._opened:
            store, name = self._catalogue.files[file]
            if store.is_local:
                path = store.local_path(name)
            else:
                self._cache = self._cache or Path(tempfile.mkdtemp(prefix="unmask-crops-"))
                path = self._cache / f"{file:06d}"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(path) as beside:
                        beside.write_bytes(store.read(name))
            self._opened[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._opened[file]
