"""A contact sheet: what augmentation does to faces, for a person to look at.

Axes: H rows, W columns, C = 3 channels in RGB order, R rows of tiles.
"""

import textwrap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment.face import five_points
from train.augment.picture import Picture
from train.augment.selfblend import SelfBlend
from train.augment.strategies import Strategy

__all__ = ["contact_sheet"]

_PAPER, _INK = 245, (30, 30, 30)
_FONT, _FONT_SCALE, _LINE_PX, _LINES = cv2.FONT_HERSHEY_SIMPLEX, 0.32, 12, 4
_CHARACTER_PX = 6.0
_GAP_PX = 6
# The viewer's left is warm, the right is cold: a picture that was mirrored and its landmarks not shows at once.
_DOTS = ((255, 60, 0), (0, 120, 255), (0, 220, 0), (255, 180, 0), (120, 0, 255))


class _Tile(NamedTuple):
    image_HWC: NDArray[np.uint8]
    caption: str


def contact_sheet(
    pictures: Iterable[tuple[str, Picture]],
    strategy: Strategy,
    *,
    seed: int = 0,
    draws: int = 5,
    tile_px: int = 192,
    blends: SelfBlend | None = None,
    landmarks: bool = False,
) -> NDArray[np.uint8]:
    """One row a face: as it is, then draws of a strategy, each with the steps it took.

    With self-blends each draw is three tiles: the real picture of the pair and the fake, both after the strategy, and
    the mask.

    Args:
        pictures: Names and faces; at least one.
        strategy: Is drawn anew for every tile.
        seed: What the draws come from; a face's draws do not depend on the other faces.
        draws: Tiles a face, at least 1.
        tile_px: Side of a tile; pictures are fitted in.
        blends: Show self-blends of these options.
        landmarks: Mark the five landmarks: warm colours for the viewer's left, cold for the right.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    rows = []
    for n, (name, picture) in enumerate(pictures):
        tiles = [_tile(picture, name, landmarks=landmarks)]
        for draw in range(draws):
            rng = np.random.default_rng((seed, n, draw))
            tiles += _drawn(picture, strategy, rng, landmarks=landmarks) if blends is None else []
            tiles += _blended(picture, strategy, blends, rng, landmarks=landmarks) if blends is not None else []
        rows.append(np.concatenate([_framed(tile, tile_px) for tile in tiles], axis=1))
    return np.concatenate(rows)


def _drawn(picture: Picture, strategy: Strategy, rng: np.random.Generator, *, landmarks: bool) -> Iterator[_Tile]:
    draw = strategy.draw(rng)
    yield _tile(draw.apply(picture), str(draw), landmarks=landmarks)


def _blended(
    picture: Picture, strategy: Strategy, blends: SelfBlend, rng: np.random.Generator, *, landmarks: bool
) -> Iterator[_Tile]:
    blend, after = blends.draw(rng), strategy.draw(rng)
    real, fake = (after.apply(one) for one in blend.pair(picture))
    assert fake.mask_HW is not None
    yield _tile(real, f"real; {after}", landmarks=landmarks)
    yield _tile(fake, f"fake; {blend}", landmarks=landmarks)
    yield _Tile(np.repeat(fake.mask_HW[..., None], 3, axis=2), "mask")


def _tile(picture: Picture, caption: str, *, landmarks: bool) -> _Tile:
    image_HWC = picture.image_HWC.copy()
    if landmarks:
        for (x, y), colour in zip(five_points(picture.landmarks_K2), _DOTS, strict=True):
            if np.isfinite((x, y)).all():
                place = np.clip((x, y), -1e4, 1e4).round().astype(int).tolist()
                cv2.circle(image_HWC, place, max(picture.side // 60, 1), colour, cv2.FILLED)
    return _Tile(image_HWC, caption)


def _framed(tile: _Tile, tile_px: int) -> NDArray[np.uint8]:
    """A tile with its caption below, on paper."""
    height, width, _ = tile.image_HWC.shape
    scale = tile_px / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    image_HWC = cv2.resize(tile.image_HWC, size, interpolation=method)
    paper_HWC = np.full((tile_px + _LINES * _LINE_PX + 2 * _GAP_PX, tile_px + _GAP_PX, 3), _PAPER, np.uint8)
    top, left = (tile_px - size[1]) // 2, (tile_px - size[0]) // 2
    paper_HWC[top : top + size[1], left : left + size[0]] = image_HWC
    lines = textwrap.wrap(tile.caption, max(int(tile_px / _CHARACTER_PX), 8))[:_LINES]
    for n, line in enumerate(lines):
        # OpenCV's letters are ASCII alone.
        text = line.encode("ascii", "replace").decode()
        cv2.putText(
            paper_HWC, text, (1, tile_px + (n + 1) * _LINE_PX), _FONT, _FONT_SCALE, _INK, 1, lineType=cv2.LINE_AA
        )
    return paper_HWC
