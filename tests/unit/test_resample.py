"""Area resampling equals adaptive average pooling, and stays exact where sums wrap round."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.resample import IntegralImages, area_resize, area_windows

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def pooled(image: Tensor, height: int, width: int) -> Tensor:
    planes = image.permute(2, 0, 1)[None].double()
    return F.interpolate(planes, size=(height, width), mode="area")[0].permute(1, 2, 0)


@pytest.mark.parametrize("shape", [(31, 57), (19, 23), (97, 131), (200, 5), (1, 1)])
def test_rows_equal_adaptive_pooling(shape: tuple[int, int]) -> None:
    image = picture(97, 131)
    means = IntegralImages([image], CPU).rows(0, 1, shape, 0, shape[0])[0, :, :, :3]
    torch.testing.assert_close(means.double(), pooled(image, *shape), atol=2e-4, rtol=0)


def test_rows_of_several_images_and_a_strip() -> None:
    images = [picture(40, 60, seed) for seed in range(3)]
    means = IntegralImages([picture(10, 20), *images], CPU).rows(1, 3, (23, 31), 5, 11)
    for image, strip in zip(images, means, strict=True):
        torch.testing.assert_close(strip[:, :, :3].double(), pooled(image, 23, 31)[5:11], atol=2e-4, rtol=0)


def test_crops_equal_adaptive_pooling_of_each_crop() -> None:
    images = [picture(90, 70, 1), picture(50, 120, 2)]
    image_N = torch.tensor([0, 1, 1, 0, 1])
    boxes_N4 = torch.tensor([[0, 0, 70, 90], [5, 7, 100, 50], [119, 49, 120, 50], [10, 10, 13, 60], [30, 1, 54, 25]])
    crops = IntegralImages(images, CPU).crops(image_N, boxes_N4, 24)
    for crop, i, (x1, y1, x2, y2) in zip(crops, image_N.tolist(), boxes_N4.tolist(), strict=True):
        expected = pooled(images[i][y1:y2, x1:x2], 24, 24)
        torch.testing.assert_close(crop[:, :, :3].double(), expected, atol=2e-4, rtol=0)


def test_sums_that_wrap_round_stay_exact() -> None:
    # 8.6 million white pixels add up to more than 2^31.
    image = torch.full((1024, 8400, 3), 255, dtype=torch.uint8)
    image[-100:, -200:] = picture(100, 200)
    integrals = IntegralImages([image], CPU)
    assert 1024 * 8400 * 255 > 2**31
    box = torch.tensor([[8200, 924, 8400, 1024]])
    crop = integrals.crops(torch.tensor([0]), box, 24)[0, :, :, :3]
    torch.testing.assert_close(crop.double(), pooled(image[924:, 8200:], 24, 24), atol=2e-4, rtol=0)
    assert torch.equal(integrals.rows(0, 1, (64, 105), 0, 8)[..., :3], torch.full((1, 8, 105, 3), 255.0))


def test_a_buffer_may_be_used_again() -> None:
    images = [picture(30, 40)]
    buffer = torch.full((5000, 4), -7, dtype=torch.int32)
    assert IntegralImages.cells(images) == 31 * 41
    again = IntegralImages(images, CPU, buffer).rows(0, 1, (9, 9), 0, 9)
    assert torch.equal(again, IntegralImages(images, CPU).rows(0, 1, (9, 9), 0, 9))


@pytest.mark.parametrize("shape", [(60, 90), (40, 60), (39, 61), (120, 180), (7, 300), (30, 45)])
def test_area_resize_rounds_halves_up(shape: tuple[int, int]) -> None:
    # (60, 90) and (40, 60) are the whole ratios 2 and 3, which OpenCV computes.
    image = picture(120, 180)
    expected = (pooled(image, *shape) + 0.5).floor().to(torch.uint8)
    assert torch.equal(area_resize(image, *shape), expected)


def test_area_resize_in_strips_equals_the_whole() -> None:
    image = picture(500, 64)
    expected = (pooled(image, 301, 40) + 0.5).floor()
    assert (area_resize(image, 301, 40).double() - expected).abs().max() == 0


def test_area_resize_takes_pieces_of_larger_images() -> None:
    image = picture(100, 100)
    assert torch.equal(area_resize(image[10:90, 20:80], 33, 25), area_resize(image[10:90, 20:80].clone(), 33, 25))


def test_windows_cover_the_axis() -> None:
    first, last = area_windows(10, 4, CPU)
    assert first.tolist() == [0, 2, 5, 7]
    assert last.tolist() == [3, 5, 8, 10]
