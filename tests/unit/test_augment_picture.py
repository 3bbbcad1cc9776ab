import numpy as np
import pytest

from tests.heads import head
from train import augment
from train.augment.colours import Grey
from train.augment.geometry import Flip
from train.augment.picture import Draw, Picture, Steps


@pytest.mark.parametrize(
    ("image", "landmarks", "mask", "message"),
    [
        (np.zeros((8, 8), np.uint8), np.zeros((5, 2), np.float32), None, "an image is uint8"),
        (np.zeros((8, 8, 3), np.float32), np.zeros((5, 2), np.float32), None, "float32 of shape"),
        (np.zeros((0, 8, 3), np.uint8), np.zeros((5, 2), np.float32), None, "an image is uint8"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((10,), np.float32), None, r"landmarks have shape \(5, 2\) or"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((5, 2), np.float32), np.zeros((8, 9), np.uint8), r"\(8, 9\)"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((5, 2), np.float32), np.zeros((8, 8), bool), "a mask is uint8"),
    ],
)
def test_other_shapes_are_refused(image, landmarks, mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        Picture(image, landmarks, mask)


def test_a_picture_prints_its_shape_and_not_its_pixels() -> None:
    assert repr(head(30, 20, mask=True)) == "Picture(30 x 20, 5 landmarks, with a mask)"
    assert head(30, 20).side == 30


def test_steps_are_done_in_order_and_alike_on_a_clip() -> None:
    draw: Draw = Steps((Flip(), Grey()))
    clip = [head(60, 60), head(40, 50)]
    for before, after in zip(clip, draw.apply_clip(clip), strict=True):
        expected = Grey()(Flip()(before))
        np.testing.assert_array_equal(after.image_HWC, expected.image_HWC)
        np.testing.assert_array_equal(after.landmarks_K2, expected.landmarks_K2)
    assert str(draw) == "flip, grey"
    assert str(Steps()) == "unchanged"
    assert Steps().apply(clip[0]) is clip[0]


def test_the_package_exports_its_interface() -> None:
    names = set("BLENDS STRATEGIES Draw Picture SelfBlend Strategy contact_sheet self_blend strategy".split())
    assert set(augment.__all__) == names
