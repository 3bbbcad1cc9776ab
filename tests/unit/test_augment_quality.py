import io

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tests.heads import head
from train.augment.picture import Picture, Step
from train.augment.quality import BandGains, Blur, Downscale, GeneratorTraces, Jpeg, Noise, Sharpen

ALL: list[Step] = [
    Jpeg(40),
    Noise(5.0, 3),
    Blur(0.01),
    Sharpen(0.5),
    Downscale(0.25, cv2.INTER_NEAREST),
    Downscale(0.5, cv2.INTER_AREA, cv2.INTER_CUBIC),
    GeneratorTraces(0.5, ((1.03, 0.97), (1.0, 1.0))),
    BandGains((0.5, 1.5, 1.0)),
]


def detail(pixels_HWC) -> float:
    return float(np.abs(cv2.Laplacian(pixels_HWC.astype(np.float32), cv2.CV_32F)).mean())


@pytest.mark.parametrize("quality", [40, 75, 95])
def test_jpeg_is_what_another_coder_makes(quality: int) -> None:
    before, buffer = head().image_HWC, io.BytesIO()
    Image.fromarray(before).save(buffer, "jpeg", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer)).astype(int)
    after = Jpeg(quality)(head()).image_HWC.astype(int)
    assert np.abs(after - expected).mean() < 1
    assert np.abs(after - before).mean() > 2 * np.abs(after - expected).mean()


def test_noise_has_its_width_and_comes_from_its_seed() -> None:
    grey = Picture(np.full((120, 110, 3), 128, np.uint8), head().landmarks_K2)
    noise = Noise(6.0, 1)(grey).image_HWC.astype(float) - 128
    assert noise.std() == pytest.approx(6.0, rel=0.02)
    assert abs(noise.mean()) < 0.1
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(Noise(6.0, 1)(grey).image_HWC - 128.0, noise)
    assert (Noise(6.0, 2)(grey).image_HWC - 128.0 != noise).mean() > 0.5


@pytest.mark.parametrize("share", [0.004, 0.02])
def test_blur_is_gaussian_and_a_share_of_the_side(share: float) -> None:
    for picture in (head(100, 150), head(60, 40)):
        sigma_px = share * max(picture.image_HWC.shape)
        expected = gaussian_filter(picture.image_HWC.astype(float), (sigma_px, sigma_px, 0), mode="mirror")
        # OpenCV cuts the kernel of bytes at three standard deviations.
        assert np.abs(Blur(share)(picture).image_HWC - expected).max() <= 3


def test_a_blur_of_nothing_changes_nothing() -> None:
    np.testing.assert_array_equal(Blur(0.0)(head()).image_HWC, head().image_HWC)


def test_sharpening_adds_what_a_blur_takes_away() -> None:
    image = head().image_HWC.astype(float)
    blurred = gaussian_filter(image, (1.5, 1.5, 0), mode="mirror")
    expected = np.clip(image + 0.5 * (image - blurred), 0, 255)
    assert np.abs(Sharpen(0.5, 0.01)(head()).image_HWC - expected).max() <= 2


def test_downscaling_loses_detail_and_keeps_the_size() -> None:
    image = head().image_HWC
    after = Downscale(0.25, cv2.INTER_AREA, cv2.INTER_LINEAR)(head()).image_HWC
    assert after.shape == image.shape
    assert detail(after) < 0.35 * detail(image)
    assert np.abs(after.mean((0, 1)) - image.mean((0, 1))).max() < 1
    small = cv2.resize(image, (38, 38), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(after, cv2.resize(small, (150, 150), interpolation=cv2.INTER_LINEAR))


def test_a_generator_leaves_a_lattice() -> None:
    plain = Picture(np.full((64, 64, 3), 100, np.uint8), head().landmarks_K2)
    after = GeneratorTraces(1.0, ((1.1, 0.9), (1.0, 0.8)))(plain).image_HWC
    assert after[::2, ::2].min() == after[::2, ::2].max() == 110
    assert after[::2, 1::2].min() == after[::2, 1::2].max() == 90
    assert after[1::2, ::2].min() == after[1::2, ::2].max() == 100
    assert after[1::2, 1::2].min() == after[1::2, 1::2].max() == 80
    # Enlarged by two, the lattice has a period of four pixels: a peak in the spectrum.
    enlarged = GeneratorTraces(0.5, ((1.1, 0.9), (1.1, 0.9)))(plain).image_HWC[32, :, 0].astype(float)
    spectrum = np.abs(np.fft.rfft(enlarged - enlarged.mean()))
    assert spectrum.argmax() == 64 // 4


def test_bands_are_what_blurs_leave_between_them() -> None:
    image = head().image_HWC.astype(float)
    blurs = [gaussian_filter(image, (s, s, 0), mode="mirror") for s in (0.75, 1.5, 3.0)]
    finest, middle, coarse = image - blurs[0], blurs[0] - blurs[1], blurs[1] - blurs[2]
    expected = np.clip(0.3 * finest + 1.6 * middle + 1.1 * coarse + blurs[2], 0, 255)
    assert np.abs(BandGains((0.3, 1.6, 1.1), 0.005)(head()).image_HWC - expected).max() <= 2
    np.testing.assert_array_equal(BandGains((1, 1, 1))(head()).image_HWC, head().image_HWC)


@pytest.mark.parametrize("step", ALL, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (16, 16), (17, 120), (120, 9)])
def test_any_size(step: Step, shape: tuple[int, int]) -> None:
    before = head(*shape, mask=True)
    copy = before.image_HWC.copy()
    after = step(before)
    assert after.image_HWC.shape == (*shape, 3)
    assert after.image_HWC.dtype == np.uint8
    assert after.landmarks_K2 is before.landmarks_K2
    assert after.mask_HW is before.mask_HW
    np.testing.assert_array_equal(before.image_HWC, copy)
