import pickle
from collections import Counter

import numpy as np
import pytest

from tests.heads import BROKEN, head, is_within_binomial, with_ibug
from train.augment.colours import BrightnessContrast, ColourJitter, FancyPca, Grey, HueSaturation, RgbShift
from train.augment.geometry import Flip, IsotropicResize, Pad, ShiftScaleRotate
from train.augment.picture import Picture
from train.augment.quality import Blur, Jpeg, Noise
from train.augment.strategies import STRATEGIES, strategy
from unmask.errors import UsageError

TRIES = 3000


def drawn(name: str) -> list[tuple]:
    plan = strategy(name, 380)
    return [plan.draw(np.random.default_rng((11, n))).steps for n in range(TRIES)]


def counted(draws: list[tuple]) -> Counter[str]:
    return Counter(type(step).__name__ for steps in draws for step in steps)


def values(draws: list[tuple], kind: type, name: str) -> np.ndarray:
    return np.array([getattr(step, name) for steps in draws for step in steps if isinstance(step, kind)])


def assert_uniform(drawn_N: np.ndarray, low: float, high: float) -> None:
    """Nearly touches both ends, never passes them, and has the mean of a uniform draw."""
    span = high - low
    assert low <= drawn_N.min() < low + 0.05 * span
    assert high - 0.05 * span < drawn_N.max() <= high
    assert abs(drawn_N.mean() - (low + high) / 2) < 4 * span / (12 * drawn_N.size) ** 0.5


def test_none_is_nothing() -> None:
    assert strategy("none", 224).draw(np.random.default_rng(0)).steps == ()


def test_dfdc() -> None:
    draws = drawn("dfdc")
    counts = counted(draws)
    third = 0.7 / 3
    expected = {
        Jpeg: 0.5,
        Noise: 0.1,
        Blur: 0.05,
        Flip: 0.5,
        BrightnessContrast: third,
        FancyPca: third,
        HueSaturation: third,
        Grey: 0.2,
        ShiftScaleRotate: 0.5,
    }
    for kind, p in expected.items():
        assert is_within_binomial(counts[kind.__name__], TRIES, p), kind
    assert counts["IsotropicResize"] == counts["Pad"] == TRIES
    assert_uniform(values(draws, Jpeg, "quality"), 60, 100)
    assert_uniform(values(draws, Noise, "sigma") ** 2, 10, 50)
    assert_uniform(values(draws, ShiftScaleRotate, "degrees"), -10, 10)
    assert_uniform(values(draws, ShiftScaleRotate, "scale"), 0.8, 1.2)
    assert_uniform(values(draws, ShiftScaleRotate, "shift_xy").ravel(), -0.1, 0.1)
    assert_uniform(values(draws, BrightnessContrast, "contrast"), -0.2, 0.2)
    assert values(draws, FancyPca, "alphas_3").std() == pytest.approx(0.1, rel=0.05)
    resizes = Counter((s.shrinking, s.enlarging) for steps in draws for s in steps if isinstance(s, IsotropicResize))
    assert len(resizes) == 3
    assert all(is_within_binomial(count, TRIES, 1 / 3) for count in resizes.values())
    # One colour change at most, and the cutout comes after all else.
    for steps in draws:
        names = [type(step).__name__ for step in steps]
        assert sum(name in {"BrightnessContrast", "FancyPca", "HueSaturation"} for name in names) <= 1
        cutouts = [name for name in names if name in {"RemoveLandmark", "HalfFace", "HalfPicture"}]
        assert names[len(names) - len(cutouts) :] == cutouts
    assert is_within_binomial(counts["RemoveLandmark"], TRIES, 0.6125)


def test_celebdf() -> None:
    draws = drawn("celebdf")
    counts = counted(draws)
    assert is_within_binomial(counts["Flip"], TRIES, 0.5)
    assert is_within_binomial(counts["Blur"], TRIES, 0.2)
    assert counts["ShiftScaleRotate"] == counts["ColourJitter"] == TRIES
    assert_uniform(values(draws, ShiftScaleRotate, "degrees"), -15, 15)
    assert set(values(draws, ShiftScaleRotate, "scale")) == {1.0}
    assert_uniform(values(draws, ColourJitter, "brightness"), 0.8, 1.2)
    assert_uniform(values(draws, ColourJitter, "contrast"), 0.8, 1.2)
    assert_uniform(values(draws, ColourJitter, "saturation"), 0.9, 1.1)
    assert_uniform(values(draws, ColourJitter, "hue_turns"), -0.05, 0.05)
    orders = Counter(tuple(order) for order in values(draws, ColourJitter, "order"))
    assert len(orders) == 24
    assert all(is_within_binomial(count, TRIES, 1 / 24) for count in orders.values())


def test_dfgc_is_light() -> None:
    draws = drawn("dfgc")
    counts = counted(draws)
    assert set(counts) == {"Flip", "BrightnessContrast"}
    assert is_within_binomial(counts["Flip"], TRIES, 0.5)
    assert is_within_binomial(counts["BrightnessContrast"], TRIES, 0.3)


def test_fusion_draws_one_augmentation_or_none() -> None:
    draws = drawn("fusion")
    assert {len(steps) for steps in draws} == {0, 1}
    counts = counted(draws)
    assert len(counts) == 7
    assert all(is_within_binomial(count, TRIES, 1 / 8) for count in counts.values())


def test_selfblend_is_what_follows_the_blend() -> None:
    draws = drawn("selfblend")
    counts = counted(draws)
    wanted = {Flip: 0.5, ShiftScaleRotate: 0.5, RgbShift: 0.3, HueSaturation: 0.3, BrightnessContrast: 0.3, Jpeg: 0.5}
    for kind, p in wanted.items():
        assert is_within_binomial(counts[kind.__name__], TRIES, p), kind
    assert len(counts) == len(wanted)
    assert_uniform(values(draws, ShiftScaleRotate, "scale"), 0.9, 1.1)
    assert_uniform(values(draws, Jpeg, "quality"), 40, 100)
    assert_uniform(values(draws, RgbShift, "levels_C").ravel(), -20, 20)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("shape", [(16, 16), (150, 150), (200, 90), (31, 240), (1, 1)])
def test_any_crop_gives_rgb_of_bytes(name: str, shape: tuple[int, int]) -> None:
    plan = strategy(name, (96, 128))
    for n in range(10 if "video" in name else 40):  # an encoder takes its time
        picture = head(*shape, mask=n % 2 == 0)
        after = plan.draw(np.random.default_rng((3, n))).apply(with_ibug(picture) if n % 3 == 0 else picture)
        assert after.image_HWC.dtype == np.uint8
        assert after.image_HWC.flags.c_contiguous
        if "video" in name:  # the resolution goes down, the proportions stay
            assert all(1 <= side <= before for side, before in zip(after.image_HWC.shape, shape, strict=False))
        else:
            assert after.image_HWC.shape == ((96, 128, 3) if name == "dfdc" else (*shape, 3))
        assert np.isfinite(after.landmarks_K2).all()
        assert (after.mask_HW is None) == (picture.mask_HW is None)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("kind", BROKEN)
def test_landmarks_that_are_nowhere_stop_nothing(name: str, kind: str) -> None:
    picture = Picture(head(40, 40).image_HWC, BROKEN[kind])
    for n in range(25):
        strategy(name, 64).draw(np.random.default_rng((4, n))).apply(picture)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_seed_one_result_whatever_the_global_state(name: str) -> None:
    plan = strategy(name, 120)
    picture = head(mask=True)

    def results() -> list[np.ndarray]:
        return [plan.draw(np.random.default_rng((5, n))).apply(picture).image_HWC for n in range(30)]

    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = results()
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    for one, other in zip(first, results(), strict=True):
        np.testing.assert_array_equal(one, other)
    if name != "none":
        assert any(one.shape != first[0].shape or (one != first[0]).any() for one in first)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if "video" not in name])  # a video's frames are predicted
def test_one_draw_changes_two_frames_alike(name: str) -> None:
    plan = strategy(name, 100)
    picture = with_ibug(head(mask=True))
    for n in range(20):
        draw = plan.draw(np.random.default_rng((6, n)))
        one, other = draw.apply_clip([picture, picture])
        np.testing.assert_array_equal(one.image_HWC, other.image_HWC)
        np.testing.assert_array_equal(one.landmarks_K2, other.landmarks_K2)
        # A frame of another size: the same places, as shares.
        larger = draw.apply(with_ibug(head(300, 300)))
        size, larger_size = (np.array(p.image_HWC.shape[1::-1]) for p in (one, larger))
        shares = [(p.landmarks_K2 + 0.5) / s for p, s in ((one, size), (larger, larger_size))]
        np.testing.assert_allclose(shares[0], shares[1], atol=0.01)


def test_strategies_and_draws_travel_between_processes() -> None:
    for name in STRATEGIES:
        plan = pickle.loads(pickle.dumps(strategy(name, 64)))
        draw = plan.draw(np.random.default_rng(9))
        again = pickle.loads(pickle.dumps(draw))
        np.testing.assert_array_equal(draw.apply(head()).image_HWC, again.apply(head()).image_HWC)


def test_sizes_and_names() -> None:
    assert strategy("dfdc", 380).size_HW == (380, 380)
    assert strategy("dfdc", (224, 112)).size_HW == (224, 112)
    with pytest.raises(UsageError, match="no augmentation 'strong'; known are none, dfgc, celebdf, dfdc, fusion"):
        strategy("strong", 224)


def test_pads_are_black() -> None:
    for n in range(20):
        draw = strategy("dfdc", 100).draw(np.random.default_rng((12, n)))
        quiet = [s for s in draw.steps if isinstance(s, IsotropicResize | Pad)]
        after = head(100, 50)
        for step in quiet:
            after = step(after)
        assert not after.image_HWC[:, :25].any()
        assert not after.image_HWC[:, 75:].any()
