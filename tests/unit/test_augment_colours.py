import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from tests.heads import head
from train.augment.colours import BrightnessContrast, ColourJitter, FancyPca, Grey, HueSaturation, RgbShift
from train.augment.picture import Picture, Step


def grey_head() -> Picture:
    return Grey()(head())


def difference(step: Step, expected_HWC) -> np.ndarray:
    return np.abs(step(head()).image_HWC.astype(float) - np.clip(expected_HWC, 0, 255))


def test_shift() -> None:
    image = head().image_HWC.astype(float)
    assert difference(RgbShift((10, -20, 5.5)), image + np.array([10, -20, 5.5])).max() <= 1


def test_brightness_and_contrast() -> None:
    image = head().image_HWC.astype(float)
    assert difference(BrightnessContrast(0.1, -0.2), image * 0.8 + 25.5).max() <= 1
    assert difference(BrightnessContrast(-0.2, 0.2), image * 1.2 - 51).max() <= 1


def test_a_change_of_nothing_changes_nothing() -> None:
    for step in (
        RgbShift((0, 0, 0)),
        BrightnessContrast(0, 0),
        HueSaturation(0, 0),
        ColourJitter(),
        FancyPca((0, 0, 0)),
    ):
        np.testing.assert_array_equal(step(head()).image_HWC, head().image_HWC)


@pytest.mark.parametrize("degrees", [-30.0, 15.0, 120.0])
def test_hue_turns_the_chroma_of_yiq(degrees: float) -> None:
    # Colours in the middle of the range, so that nothing is clipped.
    rng = np.random.default_rng(0)
    pixels_HWC = rng.integers(100, 156, (20, 20, 3), np.uint8)
    picture = Picture(pixels_HWC, head().landmarks_K2)
    turned = HueSaturation(degrees, 0.0)(picture).image_HWC
    before, after = (chroma(p) for p in (pixels_HWC, turned))
    saturated = np.abs(before) > 15
    angles = np.degrees(np.angle(after[saturated] / before[saturated]))
    # Red to yellow to green, the way of a growing hue, is clockwise in the plane of I and Q.
    wrapped = (angles + degrees + 180) % 360 - 180
    assert np.abs(wrapped).max() < 4
    assert np.abs(luma(turned) - luma(pixels_HWC)).max() < 1


def luma(pixels_HWC) -> np.ndarray:
    return pixels_HWC.astype(float) @ [0.299, 0.587, 0.114]


def chroma(pixels_HWC) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels_HWC.astype(float), -1, 0)
    return (0.5959 * red - 0.2746 * green - 0.3213 * blue) + 1j * (0.2115 * red - 0.5227 * green + 0.3112 * blue)


def test_saturation_and_value() -> None:
    image = head().image_HWC.astype(float)
    grey_HW1 = luma(image)[..., None]
    assert difference(HueSaturation(0, 0.3, 0.05), grey_HW1 + 1.3 * (image - grey_HW1) + 12.75).max() <= 1
    assert np.ptp(HueSaturation(0, -1)(head()).image_HWC.astype(int), axis=2).max() <= 1


def test_grey_pictures_stay_grey() -> None:
    steps = (HueSaturation(40, 0.3, 0.07), BrightnessContrast(0.2, 0.2), FancyPca((0.2, -0.3, 0.1)))
    for step in (*steps, ColourJitter(1.2, 0.8, 1.1, 0.05)):
        assert np.ptp(step(grey_head()).image_HWC.astype(int), axis=2).max() <= 1


def test_grey_is_luma() -> None:
    image = grey_head().image_HWC
    assert (np.ptp(image, axis=2) == 0).all()
    assert np.abs(image[..., 0] - luma(head().image_HWC)).max() <= 1


@pytest.mark.parametrize("order", list(itertools.permutations(("brightness", "contrast", "saturation"))))
def test_jitter_is_torchvisions(order) -> None:
    # Torchvision clips after every step and ours once, so the colours keep off the ends of the range.
    image = (head().image_HWC // 2 + 50).astype(np.uint8)
    factors = {"brightness": 1.1, "contrast": 0.85, "saturation": 1.08}
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    for name in order:
        expected = getattr(reference, f"adjust_{name}")(expected, factors[name])
    ours = ColourJitter(**factors, order=(*order, "hue"))(Picture(image, head().landmarks_K2)).image_HWC
    assert np.abs(ours - 255 * expected.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("turns", [-0.05, 0.02, 0.05])
def test_hue_is_near_torchvisions(turns: float) -> None:
    # Theirs turns the hexagon of HSV, ours the plane of chroma; luma is another, the hue nearly the same.
    image = head().image_HWC
    expected = reference.adjust_hue(torch.from_numpy(image).permute(2, 0, 1), turns).permute(1, 2, 0).numpy()
    ours = ColourJitter(hue_turns=turns)(head()).image_HWC
    near = np.abs(chroma(ours) - chroma(expected)).mean()
    assert near < 0.55 * np.abs(chroma(image) - chroma(expected)).mean()


def test_principal_axes() -> None:
    # Colours along one line: the first axis is its direction, the step the standard deviation.
    rng = np.random.default_rng(1)
    direction = np.array([2.0, 1.0, 2.0]) / 3
    spread = rng.normal(0, 20, (60, 60, 1))
    image = np.clip(np.rint(128 + spread * direction), 0, 255).astype(np.uint8)
    levels = FancyPca((0.5, 0.0, 0.0)).levels(image)
    np.testing.assert_allclose(levels, 0.5 * spread.std() * direction, atol=0.2)
    after = FancyPca((0.5, 0.0, 0.0))(Picture(image, head().landmarks_K2)).image_HWC
    assert np.abs(after.astype(float) - (image + levels)).max() <= 1


def test_frames_of_a_clip_shift_by_the_same_axes() -> None:
    step = FancyPca((0.1, 0.1, 0.1))
    shifts = [step.levels(head(side, side).image_HWC) for side in (150, 140, 97)]
    assert np.abs(np.diff(shifts, axis=0)).max() < 1.0
    assert np.abs(shifts[0]).max() > 3


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (3, 200)])
def test_plain_and_tiny_pictures(shape) -> None:
    plain = Picture(np.full((*shape, 3), 77, np.uint8), head().landmarks_K2)
    np.testing.assert_array_equal(FancyPca((1, 1, 1))(plain).image_HWC, plain.image_HWC)
    assert ColourJitter(0.9, 1.1, 1.1, 0.01)(plain).image_HWC.shape == plain.image_HWC.shape
