import json
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from unmask.errors import ModelError, Reason, UsageError
from unmask.transforms import MARGINS, Preprocessing, resize, to_tensor

IMAGE_HWC = np.ascontiguousarray(astronaut())


def test_input_is_normalised_and_in_rgb_order() -> None:
    crop = np.zeros((20, 20, 3), np.uint8)
    crop[..., 0], crop[..., 2] = 255, 51
    preprocessing = Preprocessing(size_px=16, mean=(0.5, 0.25, 0.1), std=(0.5, 0.25, 0.2))
    inputs_N3HW = to_tensor([crop, crop], preprocessing)
    assert inputs_N3HW.shape == (2, 3, 16, 16)
    assert inputs_N3HW.dtype == torch.float32
    assert inputs_N3HW.is_contiguous(memory_format=torch.channels_last)
    for channel, value in enumerate((1.0, -1.0, 0.5)):
        torch.testing.assert_close(inputs_N3HW[:, channel], torch.full((2, 16, 16), value))


def test_it_equals_torchvision_up_to_rounding() -> None:
    from torchvision.transforms import functional as tv

    preprocessing = Preprocessing(size_px=64)
    pixels = resize(IMAGE_HWC, preprocessing)
    expected = tv.normalize(tv.to_tensor(pixels), list(preprocessing.mean), list(preprocessing.std))
    torch.testing.assert_close(to_tensor([IMAGE_HWC], preprocessing)[0], expected, atol=1e-5, rtol=0)


def test_a_crop_does_not_depend_on_its_batch() -> None:
    preprocessing = Preprocessing(size_px=(48, 40))
    crops = [IMAGE_HWC[:100, :90], IMAGE_HWC[:30, :200], IMAGE_HWC[5:6, 7:8]]
    together = to_tensor(crops, preprocessing)
    assert together.shape == (3, 3, 48, 40)
    for crop, alone in zip(crops, together, strict=True):
        assert torch.equal(to_tensor([crop], preprocessing)[0], alone)


def test_no_crops_give_an_empty_batch() -> None:
    assert to_tensor([], Preprocessing(size_px=32)).shape == (0, 3, 32, 32)


def test_shrinking_is_by_area_and_enlarging_as_stated() -> None:
    bilinear, bicubic = (Preprocessing(size_px=128, interpolation=i) for i in ("bilinear", "bicubic"))
    small = IMAGE_HWC[:64, :64]
    np.testing.assert_array_equal(resize(IMAGE_HWC, bilinear), cv2.resize(IMAGE_HWC, (128, 128), interpolation=3))
    np.testing.assert_array_equal(resize(IMAGE_HWC, bilinear), resize(IMAGE_HWC, bicubic))
    np.testing.assert_array_equal(resize(small, bilinear), cv2.resize(small, (128, 128), interpolation=1))
    np.testing.assert_array_equal(resize(small, bicubic), cv2.resize(small, (128, 128), interpolation=2))


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (7, 500), (500, 3), (64, 64)])
def test_padding_keeps_proportions_and_centres(size: tuple[int, int]) -> None:
    crop = np.full((*size, 3), 200, np.uint8)
    out = resize(crop, Preprocessing(size_px=64, fit="pad"))
    rows, columns = np.flatnonzero(out.any((1, 2))), np.flatnonzero(out.any((0, 2)))
    scale = 64 / max(size)
    assert (len(rows), len(columns)) == tuple(max(round(v * scale), 1) for v in size)
    assert (out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 200).all()
    for line in (rows, columns):
        assert abs(line[0] - (63 - line[-1])) <= 1


def test_stretching_fills_the_input() -> None:
    assert (resize(np.full((100, 50, 3), 200, np.uint8), Preprocessing(size_px=64, fit="stretch")) == 200).all()


@pytest.mark.parametrize(
    "crop",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_crop_is_refused(crop: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a crop is uint8 of shape \(h, w, 3\)"):
        resize(crop, Preprocessing(size_px=32))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"size_px": 0}, "size_px"),
        ({"size_px": 100_000}, "size_px"),
        ({"size_px": (224, 224, 3)}, "size_px"),
        ({"size_px": (224.0, 224)}, "size_px"),
        ({"margin": 0.0}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"fit": "crop"}, "fit is one of"),
        ({"interpolation": "nearest"}, "interpolation one of"),
        ({"mean": (0.5, 0.5)}, "mean and std"),
        ({"std": (0.5, 0.0, 0.5)}, "mean and std"),
    ],
)
def test_bad_values_are_refused_by_name(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Preprocessing(**({"size_px": 224} | fields))


@pytest.mark.parametrize("preprocessing", [Preprocessing(size_px=224), Preprocessing(size_px=(96, 64), fit="pad")])
def test_json_and_back(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


@pytest.mark.parametrize(
    "plain", [{}, {"size_px": 224, "colour": "bgr"}, {"size_px": "big"}, {"size_px": 224, "mean": 1}]
)
def test_a_faulty_description_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Preprocessing.from_json(plain)


def test_each_backbone_has_its_own_preprocessing() -> None:
    eva = Preprocessing.for_backbone("eva_large_patch14_336.in22k_ft_in22k_in1k", margin=MARGINS["dfgc"])
    assert (eva.size_px, eva.margin, eva.interpolation) == (336, 1.3, "bicubic")
    assert eva.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))  # CLIP's
    assert Preprocessing.for_backbone("tf_efficientnet_b7.ns_jft_in1k").size_px == 600
    assert Preprocessing.for_backbone("tf_efficientnet_b7.ns_jft_in1k", size_px=380, fit="pad").size_px == 380


def test_an_unknown_backbone_is_named_with_its_neighbours() -> None:
    with pytest.raises(ModelError, match="mobilenetv3_small_100") as caught:
        Preprocessing.for_backbone("mobilenetv3_smal_100")
    assert caught.value.reason is Reason.UNKNOWN_MODEL
