"""Moving pictures with one real face in them: the public-domain portrait that scikit-image ships, filmed."""

from collections.abc import Iterator

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

__all__ = ["filmed", "scenery"]


def filmed(frames: int, width: int = 320, height: int = 240, *, turned: int = 0) -> Iterator[NDArray[np.uint8]]:
    """A portrait under a drifting camera, RGB (height, width, 3); `turned` quarter turns anticlockwise as stored."""
    portrait = skimage.data.astronaut()
    shown = (height, width) if turned % 2 else (width, height)
    for k in range(frames):
        zoom = shown[1] / 330 * (1 + 0.05 * np.sin(k / 9))
        x, y = 222 + 12 * np.sin(k / 7), 150 + 8 * np.cos(k / 11)
        matrix = np.array([[zoom, 0, shown[0] / 2 - zoom * x], [0, zoom, shown[1] / 2 - zoom * y]])
        view = cv2.warpAffine(portrait, matrix, shown, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
        yield np.ascontiguousarray(np.rot90(view, turned))


def scenery(frames: int, width: int = 320, height: int = 240) -> Iterator[NDArray[np.uint8]]:
    """A cup of coffee under a drifting camera: no face."""
    coffee = cv2.resize(skimage.data.coffee(), (width + 40, height + 40), interpolation=cv2.INTER_AREA)
    for k in range(frames):
        yield np.ascontiguousarray(coffee[k % 40 : k % 40 + height, k % 40 : k % 40 + width])
