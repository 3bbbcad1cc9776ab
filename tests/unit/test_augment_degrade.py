"""The way of shared videos: what is drawn, and that H.264 really encodes, alone and as a clip."""

import cv2
import numpy as np
import pytest

from tests.heads import head
from train.augment.degrade import H264, Degrade, draw_degradation
from train.augment.geometry import moved
from train.augment.picture import Steps


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-6)))


def luma(image_HWC: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)


def test_more_compression_leaves_less() -> None:
    picture = head(128, 128)
    qualities = [psnr(luma(H264(crf)(picture).image_HWC), luma(picture.image_HWC)) for crf in (10, 20, 30, 40)]
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[0] > 38
    assert qualities[-1] < 32


def test_a_predicted_frame_is_another_than_a_key_frame() -> None:
    picture = head(128, 128)
    alone, predicted = H264(32)(picture).image_HWC, H264(32, (0.01, 0.005))(picture).image_HWC
    assert alone.shape == predicted.shape == picture.image_HWC.shape
    assert (alone != predicted).mean() > 0.1
    assert psnr(predicted, alone) > 25


def test_a_clip_is_encoded_whole() -> None:
    """The frames of a still clip are predicted from the first: they come out alike, and not as if each were alone."""
    pictures = [head(96, 80, mask=True)] * 5
    clip = Steps((H264(35),)).apply_clip(pictures)
    assert len(clip) == 5
    assert all(
        np.array_equal(after.landmarks_K2, before.landmarks_K2) for after, before in zip(clip, pictures, strict=True)
    )
    assert all(after.mask_HW is before.mask_HW for after, before in zip(clip, pictures, strict=True))
    near = [psnr(a.image_HWC, b.image_HWC) for a, b in zip(clip[1:], clip, strict=False)]
    assert min(near) > 30
    noisy = [p.with_image(np.roll(p.image_HWC, 7 * n, 1)) for n, p in enumerate(pictures)]
    alone = H264(35)(noisy[3]).image_HWC
    assert (Steps((H264(35),)).apply_clip(noisy)[3].image_HWC != alone).any()


def test_scaling_down_takes_landmarks_and_mask_along() -> None:
    picture = head(200, 160, mask=True)
    small = Degrade(0.5)(picture)
    assert small.image_HWC.shape == (100, 80, 3)
    expected = moved(picture.landmarks_K2, np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]]))
    np.testing.assert_allclose(small.landmarks_K2, expected, atol=1e-4)
    assert small.mask_HW is not None
    assert small.mask_HW.shape == (100, 80)
    assert small.mask_HW.mean() == pytest.approx(picture.mask_HW.mean(), rel=0.05)  # type: ignore[union-attr]


def test_at_least_32_pixels_are_left_of_those_that_had_them() -> None:
    assert Degrade(0.3)(head(60, 48)).image_HWC.shape[:2] == (32, 26)
    assert Degrade(0.3)(head(20, 20)).image_HWC.shape[:2] == (20, 20)


def test_what_is_drawn_lies_in_its_ranges_and_comes_from_the_seed() -> None:
    draws = [draw_degradation(np.random.default_rng((1, n))) for n in range(600)]
    assert [str(d) for d in draws] == [str(draw_degradation(np.random.default_rng((1, n)))) for n in range(600)]
    untouched = sum(not d.steps for d in draws)
    assert 85 < untouched < 160  # 20%
    encoded = [[s for s in d.steps if isinstance(s, H264)] for d in draws if d.steps]
    assert {len(e) for e in encoded} == {1, 2}
    crfs = [e[0].crf for e in encoded]
    assert (min(crfs), max(crfs)) == (18, 32)
    assert 0.4 < np.mean([e[0].drift_xy is not None for e in encoded]) < 0.6
    scales = [s.scale for d in draws for s in d.steps if isinstance(s, Degrade)]
    assert 0.35 <= min(scales) < 0.37
    assert 0.97 < max(scales) <= 1.0
