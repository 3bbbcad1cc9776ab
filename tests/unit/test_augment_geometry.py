import cv2
import numpy as np
import pytest

from tests.heads import BROKEN, head, ibug_units, with_ibug
from train.augment.geometry import Flip, IsotropicResize, Pad, ShiftScaleRotate
from train.augment.picture import Picture, Step

STEPS: list[Step] = [
    Flip(),
    ShiftScaleRotate(degrees=10),
    ShiftScaleRotate(degrees=-15, scale=0.8, shift_xy=(0.1, -0.06)),
    ShiftScaleRotate(scale=1.2, shift_xy=(-0.05, 0.1)),
    IsotropicResize((224, 224)),
    IsotropicResize((64, 64)),
    IsotropicResize((40, 300), cv2.INTER_LINEAR, cv2.INTER_LINEAR),
    Pad((160, 201)),
]


def marked(height: int, width: int, x: int, y: int) -> Picture:
    """White, soft, where all five landmarks and the mask are; black elsewhere."""
    spot_HW = np.zeros((height, width), np.float32)
    spot_HW[y, x] = 255 * 40
    spot_HW = np.clip(cv2.GaussianBlur(spot_HW, (0, 0), 2.5), 0, 255).astype(np.uint8)
    landmarks_K2 = np.tile(np.array([[x, y]], np.float32), (5, 1))
    return Picture(np.repeat(spot_HW[..., None], 3, axis=2), landmarks_K2, spot_HW)


def centroid(pixels_HW) -> tuple[float, float]:
    weights = pixels_HW.astype(float)
    rows, columns = np.indices(weights.shape)
    return (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize(("height", "width"), [(120, 120), (100, 140), (150, 90)])
def test_landmarks_and_mask_follow_the_image(step: Step, height: int, width: int) -> None:
    after = step(marked(height, width, int(0.4 * width), int(0.55 * height)))
    assert after.image_HWC.dtype == np.uint8
    assert after.landmarks_K2.dtype == np.float32
    assert after.mask_HW is not None
    for pixels_HW in (after.image_HWC[..., 0], after.mask_HW):
        assert centroid(pixels_HW) == pytest.approx(after.landmarks_K2[0].tolist(), abs=0.2)


def test_a_flip_mirrors_pixels_and_keeps_the_viewers_left_first() -> None:
    before = head(90, 120, mask=True)
    after = Flip()(before)
    np.testing.assert_array_equal(after.image_HWC, before.image_HWC[:, ::-1])
    np.testing.assert_array_equal(after.mask_HW, before.mask_HW[:, ::-1])
    left, right, _, mouth_left, mouth_right = after.landmarks_K2
    assert left[0] < right[0]
    assert mouth_left[0] < mouth_right[0]
    np.testing.assert_allclose(left, [119 - before.landmarks_K2[1, 0], before.landmarks_K2[1, 1]])
    again = Flip()(after)
    np.testing.assert_array_equal(again.image_HWC, before.image_HWC)
    np.testing.assert_allclose(again.landmarks_K2, before.landmarks_K2, atol=1e-4)


def test_a_flip_swaps_all_68_landmarks() -> None:
    # A symmetric face in the middle is its own mirror image, so every point must come to lie where it was.
    points_K2 = (ibug_units() * 20 + [49.5, 40]).astype(np.float32)
    after = Flip()(Picture(np.zeros((100, 100, 3), np.uint8), points_K2))
    np.testing.assert_allclose(after.landmarks_K2, points_K2, atol=1e-4)


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_turns_are_anticlockwise_about_the_middle(degrees: int, turns: int) -> None:
    before = head(101, 101)
    after = ShiftScaleRotate(degrees=degrees)(before)
    difference = np.abs(after.image_HWC.astype(int) - np.rot90(before.image_HWC, turns))
    assert difference.max() <= 1


def test_a_shift_is_a_share_and_brings_in_black() -> None:
    before = head(100, 80, mask=True)
    after = ShiftScaleRotate(shift_xy=(0.1, -0.05))(before)
    np.testing.assert_array_equal(after.image_HWC[:-5, 8:], before.image_HWC[5:, :-8])
    assert not after.image_HWC[:, :8].any()
    assert not after.image_HWC[-5:].any()
    np.testing.assert_allclose(after.landmarks_K2, before.landmarks_K2 + np.array([8, -5]), atol=1e-4)


def test_one_draw_moves_frames_of_any_size_by_the_same_share() -> None:
    step = ShiftScaleRotate(degrees=7, scale=0.9, shift_xy=(0.08, -0.03))
    shares = [(step(head(side, side)).landmarks_K2 + 0.5) / side for side in (60, 150, 311)]
    np.testing.assert_allclose(shares[0], shares[1], atol=1e-5)
    np.testing.assert_allclose(shares[0], shares[2], atol=1e-5)


@pytest.mark.parametrize(
    ("before", "size", "after"),
    [
        ((100, 100), (50, 50), (50, 50)),
        ((100, 50), (224, 224), (224, 112)),
        ((30, 90), (60, 60), (20, 60)),
        ((400, 3), (20, 20), (20, 1)),
        ((16, 16), (380, 380), (380, 380)),
        ((70, 100), (70, 100), (70, 100)),
    ],
)
def test_resizing_keeps_proportions(before, size, after) -> None:
    assert IsotropicResize(size)(head(*before)).image_HWC.shape[:2] == after


def test_resizing_takes_the_interpolation_it_is_told() -> None:
    small, large = head(50, 50), head(150, 150)
    for shrinking, enlarging in ((cv2.INTER_AREA, cv2.INTER_CUBIC), (cv2.INTER_LINEAR, cv2.INTER_LINEAR)):
        step = IsotropicResize((100, 100), shrinking, enlarging)
        for picture, method in ((small, enlarging), (large, shrinking)):
            expected = cv2.resize(picture.image_HWC, (100, 100), interpolation=method)
            np.testing.assert_array_equal(step(picture).image_HWC, expected)


def test_padding_is_black_and_centred_and_never_crops() -> None:
    before = head(50, 80, mask=True)
    after = Pad((61, 70))(before)
    assert after.image_HWC.shape == (61, 80, 3)
    np.testing.assert_array_equal(after.image_HWC[5:55], before.image_HWC)
    assert not after.image_HWC[:5].any()
    assert not after.image_HWC[55:].any()
    np.testing.assert_allclose(after.landmarks_K2, before.landmarks_K2 + np.array([0, 5]))
    assert Pad((50, 80))(before) is before


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("kind", BROKEN)
def test_landmarks_that_are_nowhere_do_no_harm(step: Step, kind: str) -> None:
    after = step(Picture(head().image_HWC, BROKEN[kind]))
    assert after.landmarks_K2.shape == BROKEN[kind].shape


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_steps_never_write_into_what_they_get(step: Step) -> None:
    before = with_ibug(head(mask=True))
    copies = [v.copy() for v in (before.image_HWC, before.landmarks_K2, before.mask_HW)]
    step(before)
    for array, copy in zip((before.image_HWC, before.landmarks_K2, before.mask_HW), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
