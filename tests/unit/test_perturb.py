"""Perturbations against computations of their own; video compression against what an encoder must do."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from tests.evaluated import folder, person_clip
from tests.portraits import filmed
from train.catalogue import Catalogue
from train.encoding import reencoded
from train.ensemble import Ensemble
from train.perturb import CRF_SWEEP, PERTURBATIONS, perturbed
from train.robustness import CRF, fair_sample, passes, settings, sweep
from train.selection import select
from unmask.metrics import Measure

NOBODY = np.zeros(1, np.int64)


def face(height: int = 150, width: int = 150) -> NDArray[np.uint8]:
    return np.ascontiguousarray(cv2.resize(skimage.data.astronaut()[35:185, 150:300], (width, height)))


def apply(name: str, value: float, image: NDArray[np.uint8] | None = None, seed: int = 0) -> NDArray[np.uint8]:
    (out,) = perturbed([face() if image is None else image], NOBODY, name, value, np.random.default_rng(seed))
    return out


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_the_published_severities() -> None:
    published = {
        "saturation": (0.4, 0.3, 0.2, 0.1, 0.0),
        "contrast": (0.85, 0.725, 0.6, 0.475, 0.35),
        "block": (16, 32, 48, 64, 80),
        "noise": (0.001, 0.002, 0.005, 0.01, 0.05),
        "blur": (7, 9, 13, 17, 21),
        "pixelation": (2, 3, 4, 5, 6),
        "compression": (30, 32, 35, 38, 40),
    }
    assert {name: p.values for name, p in PERTURBATIONS.items() if name != "jpeg"} == published
    assert CRF_SWEEP == (23, 28, 32, 40)


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize(("height", "width"), [(150, 150), (61, 40), (7, 9), (1, 1)])
def test_every_crop_keeps_its_size_and_is_not_touched_itself(name: str, height: int, width: int) -> None:
    image = face(height, width)
    before = image.copy()
    for value in PERTURBATIONS[name].values:
        out = apply(name, value, image)
        assert out.shape == image.shape
        assert out.dtype == np.uint8
    assert (image == before).all()


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_more_is_worse(name: str) -> None:
    frames = [f[40:200, 80:240] for f in filmed(8)]
    quality = []
    for value in PERTURBATIONS[name].values:
        out = perturbed(frames, np.zeros(8, np.int64), name, value, np.random.default_rng(1))
        quality.append(np.mean([psnr(a, b) for a, b in zip(frames, out, strict=True)]))
    assert (np.diff(quality) < 0).all()
    assert quality[0] > quality[-1] + 2


def test_grey_has_no_colour_and_keeps_its_light() -> None:
    out = apply("saturation", 0.0)
    assert np.ptp(out.astype(int), axis=2).max() <= 1
    light = face() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(out[..., 1] - light).max() <= 1.5
    half = apply("saturation", 0.4).astype(float)
    expected = light[..., None] + 0.4 * (face() - light[..., None])
    inside = (expected > 2) & (expected < 253)
    assert np.abs(half - expected)[inside].max() <= 1.5


def test_contrast_is_a_factor() -> None:
    assert np.abs(apply("contrast", 0.35) - face() * 0.35).max() <= 0.5 + 1e-4


def test_squares_are_grey_and_as_many_as_asked_for() -> None:
    out = apply("block", 16, face(256, 256))
    changed = (out != face(256, 256)).any(2)
    assert (out[changed] == 128).all()
    assert 0.5 * 16 * 64 < changed.sum() <= 16 * 64
    assert (apply("block", 16, seed=1) != apply("block", 16, seed=2)).any()
    assert (apply("block", 16, seed=1) == apply("block", 16, seed=1)).all()


def test_noise_has_the_variance_in_every_component() -> None:
    grey = np.full((300, 300, 3), 128, np.uint8)
    out = apply("noise", 0.002, grey).astype(np.float32) / 255
    ycc = cv2.cvtColor(out, cv2.COLOR_RGB2YCrCb)
    # Rounding to pixels adds little.
    assert np.asarray(ycc).reshape(-1, 3).var(0) == pytest.approx([0.002] * 3, rel=0.1)


def test_blur_is_a_gaussian_of_a_sixth_of_its_kernel() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    out = apply("blur", 13, point)[20, :, 0].astype(float)
    x = np.arange(41) - 20
    bell = np.exp(-(x**2) / (2 * (13 / 6) ** 2)) * (np.abs(x) <= 6)
    assert out / out.sum() == pytest.approx(bell / bell.sum(), abs=0.03)


def test_pixelation_leaves_few_pixels() -> None:
    stripes = np.zeros((60, 60, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(apply("pixelation", 2, stripes).astype(int)) <= 20  # what is finer than a pixel is gone


def test_jpeg_is_jpeg() -> None:
    coded = cv2.imencode(".jpg", face()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    expected = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert expected is not None
    assert (apply("jpeg", 30) == expected[..., ::-1]).all()


def test_an_encoder_gives_back_every_crop_in_its_place() -> None:
    frames = list(filmed(6))
    crops = [f[40 : 150 + 7 * n, 80 : 201 + 5 * n] for n, f in enumerate(frames)]
    out = reencoded(crops, 18)
    assert [c.shape for c in out] == [c.shape for c in crops]
    for n, crop in enumerate(crops):
        others = [psnr(o[:110, :120], crop[:110, :120]) for o in out]
        assert int(np.argmax(others)) == n
        assert others[n] > 30
    assert reencoded([], 23) == []
    assert all((a == b).all() for a, b in zip(out, reencoded(crops, 18), strict=True))  # the same each time
    worse = reencoded(crops, 40)
    assert np.mean([psnr(a, b) for a, b in zip(worse, crops, strict=True)]) < 32


def test_faces_of_two_tracks_are_two_clips() -> None:
    crops = [f[40:140, 80:180] for f in filmed(6)]
    dark = [c // 8 for c in crops]
    mixed = [c for pair in zip(crops, dark, strict=True) for c in pair]
    tracks = np.tile([1, 2], 6)
    out = perturbed(mixed, tracks, "compression", 35, np.random.default_rng(0))
    assert all((a == b).all() for a, b in zip(out[::2], reencoded(crops, 35), strict=True))
    assert all((a == b).all() for a, b in zip(out[1::2], reencoded(dark, 35), strict=True))


def test_the_sample_is_fair() -> None:
    labels = [0] * 90 + [1] * 10
    kept = fair_sample(labels, 20, 0)
    assert kept == sorted(set(kept))
    assert sum(labels[n] for n in kept) == 10
    assert len(kept) == 20
    assert len(fair_sample(labels, 40, 0)) == 40
    assert fair_sample(labels, 0, 0) == fair_sample(labels, 100, 0) == list(range(100))
    assert fair_sample(labels, 20, 0) == kept != fair_sample(labels, 20, 1)


def test_the_sweep_measures_each_setting_once(tmp_path: Path) -> None:
    place = folder(tmp_path / "set", [person_clip(0, 0)])
    selection = select(Catalogue.read([str(place)]), "all", Ensemble(()))
    seen: list[bool] = []

    def measure(change: object) -> Measure:
        seen.append(change is not None)
        return Measure(1.0 - len(seen) / 100)

    clean, rows = sweep(selection, measure)
    assert clean.value == pytest.approx(0.99)
    assert len(seen) == passes() == 1 + 8 * 5 + 2
    assert seen.count(False) == 1
    assert [row.name for row in rows] == [*PERTURBATIONS, CRF] == [name for name, *_ in settings()]
    by_name = {row.name: dict(zip(row.values, row.measures, strict=True)) for row in rows}
    assert by_name[CRF][32] is by_name["compression"][32]
    assert rows[0].to_json()["at"][0] == {"of": 0.4, "value": pytest.approx(0.98), "low": None, "high": None}
