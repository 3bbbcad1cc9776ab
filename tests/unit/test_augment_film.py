"""Photographs as clips: they move as people and cameras do, the same for real and fake, and smoothly."""

import itertools

import numpy as np
import pytest

from tests.heads import head
from train.augment.film import Film

LIVELY = Film(seed=3, liveliness=1.0, shake=1.0, light=1.0, noise=4.0)
STILL = Film(seed=3, liveliness=0.0, shake=0.0, light=0.0, noise=0.0)


def test_the_same_draw_gives_the_same_frames_and_another_one_others() -> None:
    films = [Film.draw(np.random.default_rng(n)) for n in (1, 1, 2)]
    first, again, other = (f.shoot(f.act(head(120, 120), 4)) for f in films)
    assert all(np.array_equal(a.image_HWC, b.image_HWC) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.image_HWC, b.image_HWC) for a, b in zip(first, other, strict=True))


def test_frames_differ_and_landmarks_go_with_them() -> None:
    frames = LIVELY.act(head(160, 160), 8)
    assert len(frames) == 8
    images = np.array([f.image_HWC for f in frames]).astype(float)
    assert all(np.abs(a - b).mean() > 0.5 for a, b in itertools.pairwise(images))
    landmarks = np.array([f.landmarks_K2 for f in frames])
    assert landmarks.std(0).max() > 0.5
    assert np.abs(landmarks - head(160, 160).landmarks_K2).max() < 0.2 * 160


def test_who_sits_still_under_a_still_camera_does_not_change() -> None:
    picture = head(100, 90, mask=True)
    for frame in STILL.shoot(STILL.act(picture, 3)):
        np.testing.assert_allclose(frame.image_HWC.astype(int), picture.image_HWC.astype(int), atol=1)
        np.testing.assert_allclose(frame.landmarks_K2, picture.landmarks_K2, atol=0.05)


def test_the_camera_does_the_same_to_real_and_fake() -> None:
    """What differs between two clips before the camera differs at the same places after it, and nowhere else."""
    quiet = Film(seed=5, liveliness=0.5, shake=1.0, light=0.5, noise=0.0)
    reals = quiet.act(head(120, 120), 6)
    fakes = [p.with_image(np.where(np.arange(120)[:, None, None] < 20, 255 - p.image_HWC, p.image_HWC)) for p in reals]
    for real, fake in zip(quiet.shoot(reals), quiet.shoot(fakes), strict=True):
        assert (real.image_HWC[:5] != fake.image_HWC[:5]).any()
        np.testing.assert_array_equal(real.image_HWC[40:], fake.image_HWC[40:])
        np.testing.assert_array_equal(real.landmarks_K2, fake.landmarks_K2)


@pytest.mark.parametrize("size", [(16, 16), (31, 240), (1, 1)])
@pytest.mark.parametrize("frames", [1, 2, 16])
def test_any_crop_can_be_filmed(size: tuple[int, int], frames: int) -> None:
    clip = LIVELY.shoot(LIVELY.act(head(*size, mask=True), frames))
    assert [c.image_HWC.shape for c in clip] == [(*size, 3)] * frames
    assert all(c.mask_HW is not None and c.mask_HW.shape == size for c in clip)
