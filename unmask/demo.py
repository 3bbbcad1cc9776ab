"""Clips for a first run, made from the public-domain portrait of Eileen Collins (NASA) that scikit-image ships.

`python -m unmask.demo FOLDER` writes four: an authentic one, one whose face is blended with an altered copy of itself
(a self-blended image, Shiohara & Yamasaki 2022), one without a face, and one with damaged bytes.
"""

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from unmask.atomic import replacing

__all__ = ["main", "make_clips"]

_SIZE = (640, 480)
_RATE_FPS = 25
_FRAMES = 100
# Where the portrait's face lies: centre and half axes of an ellipse, in pixels of the 512 x 512 portrait.
_FACE_CENTRE, _FACE_AXES = (222, 118), (44, 62)
_FEWER = 0.4  # of the portrait's pixels a side: a face of some 35


def _portrait() -> NDArray[np.uint8]:
    import skimage.data

    return np.asarray(skimage.data.astronaut(), np.uint8)


def _without_face() -> NDArray[np.uint8]:
    import skimage.data

    return np.asarray(skimage.data.coffee(), np.uint8)


def _self_blend(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend the face with a moved and recoloured copy of itself of fewer pixels, as a generator gives it."""
    height, width, _ = image_HWC.shape
    matrix = cv2.getRotationMatrix2D(_FACE_CENTRE, 2.5, 1.04) + np.array([[0, 0, 2.0], [0, 0, -1.5]])
    moved = cv2.warpAffine(image_HWC, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    coarse = cv2.resize(moved, None, fx=_FEWER, fy=_FEWER, interpolation=cv2.INTER_AREA)
    donor = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    donor = np.clip(donor * (1.08, 0.97, 0.92) + (6, -3, -5), 0, 255)
    mask = np.zeros((height, width), np.float32)
    cv2.ellipse(mask, _FACE_CENTRE, _FACE_AXES, 0, 0, 360, 1.0, -1)
    mask_HW1 = cv2.GaussianBlur(mask, (0, 0), 4)[..., None]
    return np.asarray(np.round(image_HWC * (1 - mask_HW1) + donor * mask_HW1), np.uint8)


def _camera(still_HWC: NDArray[np.uint8], seed: int) -> Iterator[NDArray[np.uint8]]:
    """Film a still: the camera drifts and zooms, the light changes, the sensor is noisy."""
    rng = np.random.default_rng(seed)
    height, width, _ = still_HWC.shape
    phase = rng.uniform(0, 2 * np.pi, 4)
    for t in np.arange(_FRAMES) / _FRAMES * 2 * np.pi:
        zoom = _SIZE[1] / height * (1.45 + 0.12 * np.sin(t + phase[0]))
        x, y = width * (0.45 + 0.03 * np.sin(t + phase[1])), height * (0.34 + 0.02 * np.cos(t + phase[2]))
        matrix = np.array([[zoom, 0, _SIZE[0] / 2 - zoom * x], [0, zoom, _SIZE[1] / 2 - zoom * y]])
        view = cv2.warpAffine(still_HWC, matrix, _SIZE, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        light = 1 + 0.12 * np.sin(t + phase[3])
        noisy = view.astype(np.float32) * light + rng.normal(0, 2, view.shape)
        yield np.asarray(np.clip(noisy, 0, 255), np.uint8)


def _write(path: Path, frames: Iterator[NDArray[np.uint8]], *, damaged: bool = False) -> None:
    with replacing(path) as beside:
        with av.open(str(beside), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=_RATE_FPS, options={"crf": "20", "g": "25", "threads": "1"})
            stream.width, stream.height = _SIZE
            stream.pix_fmt = "yuv420p"
            stream.time_base = Fraction(1, _RATE_FPS)
            for image in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        if damaged:
            _damage(beside, seed=5)


def _damage(path: Path, seed: int) -> None:
    """Flip bytes in the middle third of a file, where the pictures lie."""
    data = bytearray(path.read_bytes())
    places = np.random.default_rng(seed).integers(len(data) // 3, 2 * len(data) // 3, 300)
    for place in places:
        data[place] ^= 0xFF
    path.write_bytes(data)


def make_clips(folder: Path) -> list[Path]:
    """Write the four clips of four seconds.

    Args:
        folder: Where to; made if missing.

    Returns:
        The paths: authentic, self-blended, without a face, damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    portrait = _portrait()
    authentic, blended, faceless, damaged = (
        folder / f"{name}.mp4" for name in ("authentic", "self_blended", "no_face", "damaged")
    )
    _write(authentic, _camera(portrait, seed=1))
    _write(blended, _camera(_self_blend(portrait), seed=2))
    _write(faceless, _camera(_without_face(), seed=3))
    _write(damaged, _camera(portrait, seed=4), damaged=True)
    return [authentic, blended, faceless, damaged]


def main() -> int:
    """Make the clips in the folder named by the one argument."""
    if len(sys.argv) != 2:
        print("Name one folder: python -m unmask.demo FOLDER", file=sys.stderr)
        return 2
    for path in make_clips(Path(sys.argv[1])):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
