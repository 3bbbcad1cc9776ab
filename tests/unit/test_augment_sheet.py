import numpy as np
import pytest

from tests.heads import BROKEN, head, with_ibug
from train.augment.picture import Picture
from train.augment.selfblend import SelfBlend
from train.augment.sheet import contact_sheet
from train.augment.strategies import STRATEGIES, strategy

# A tile with its gap and its caption below, in pixels.
TILE, WIDTH, HEIGHT = 96, 96 + 6, 96 + 4 * 12 + 2 * 6


def tile(sheet_HWC, row: int, column: int) -> np.ndarray:
    return sheet_HWC[row * HEIGHT :, column * WIDTH :][:TILE, :TILE]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_row_a_face_the_face_itself_first(name: str) -> None:
    faces = [("one", head(96, 96)), ("größer", with_ibug(head(200, 100))), ("tiny", head(8, 8))]
    sheet = contact_sheet(faces, strategy(name, 96), draws=3, tile_px=TILE)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (3 * HEIGHT, 4 * WIDTH, 3)
    np.testing.assert_array_equal(tile(sheet, 0, 0), head(96, 96).image_HWC)
    # The captions: ink on paper.
    assert (sheet[TILE:HEIGHT, :WIDTH] < 100).any()
    if name == "none":
        np.testing.assert_array_equal(tile(sheet, 0, 2), head(96, 96).image_HWC)


def test_a_sheet_shows_what_a_strategy_draws() -> None:
    plan = strategy("dfdc", 96)
    sheet = contact_sheet([("one", head(96, 96))], plan, seed=4, draws=5, tile_px=TILE)
    for n in range(5):
        drawn = plan.draw(np.random.default_rng((4, 0, n))).apply(head(96, 96))
        np.testing.assert_array_equal(tile(sheet, 0, n + 1), drawn.image_HWC)


def test_a_face_is_drawn_alike_whatever_stands_beside_it() -> None:
    alone = contact_sheet([("one", head())], strategy("celebdf", 96), tile_px=TILE)
    among = contact_sheet([("one", head()), ("two", head(50, 50))], strategy("celebdf", 96), tile_px=TILE)
    np.testing.assert_array_equal(alone, among[:HEIGHT])


def test_self_blends_are_real_fake_and_mask() -> None:
    faces = [("one", head(96, 96))]
    sheet = contact_sheet(faces, strategy("none", 96), seed=2, draws=2, tile_px=TILE, blends=SelfBlend())
    assert sheet.shape == (HEIGHT, 7 * WIDTH, 3)
    for n in range(2):
        real, fake = SelfBlend().draw(np.random.default_rng((2, 0, n))).pair(head(96, 96))
        np.testing.assert_array_equal(tile(sheet, 0, 1 + 3 * n), real.image_HWC)
        np.testing.assert_array_equal(tile(sheet, 0, 2 + 3 * n), fake.image_HWC)
        np.testing.assert_array_equal(tile(sheet, 0, 3 + 3 * n)[..., 0], fake.mask_HW)


def test_the_viewers_left_eye_is_warm_and_the_right_one_cold() -> None:
    # Off the middle, so that a flip shows.
    landmarks_K2 = head(96, 96).landmarks_K2 - np.array([10, 0], np.float32)
    face = Picture(head(96, 96).image_HWC, landmarks_K2)
    sheet = contact_sheet([("one", face)], strategy("dfgc", 96), draws=8, tile_px=TILE, landmarks=True)
    flipped = False
    for column in range(9):
        shown = tile(sheet, 0, column)
        _, left_eye = np.nonzero((shown == (255, 60, 0)).all(axis=2))
        _, right_eye = np.nonzero((shown == (0, 120, 255)).all(axis=2))
        assert left_eye.mean() < right_eye.mean()
        flipped |= abs(left_eye.mean() - landmarks_K2[0, 0]) > 3
    assert flipped


@pytest.mark.parametrize("kind", BROKEN)
def test_faces_without_landmarks_are_shown_too(kind: str) -> None:
    picture = Picture(head().image_HWC, BROKEN[kind])
    sheet = contact_sheet([("one", picture)], strategy("dfdc", 64), draws=2, tile_px=TILE, landmarks=True)
    assert sheet.shape == (HEIGHT, 3 * WIDTH, 3)
