import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, center_of_mass

from tests.heads import BROKEN, head, is_within_binomial, with_ibug
from train.augment.blend import Blend, Placement
from train.augment.blendmask import GRID, BlendMask
from train.augment.colours import BrightnessContrast
from train.augment.course import Course
from train.augment.face import Face, filled
from train.augment.families import FAMILIES
from train.augment.picture import Picture, Steps
from train.augment.selfblend import SelfBlend, self_blend
from train.augment.warp import FaceWarp
from unmask.errors import UsageError

EVERY = SelfBlend(families=dict.fromkeys(FAMILIES, 1.0))
STILL = np.zeros((GRID, GRID, 2), np.float32)


def mask_of(**changes) -> BlendMask:
    return BlendMask(
        **{"shapes": ("hull",), "bends_GG2": STILL, "sigmas": (0.01, 0.02), "ratio": 1.0, **changes}  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["five", "ibug"])
def test_real_and_fake_differ_where_the_mask_says_and_nowhere_else(family: str, kind: str) -> None:
    picture = head(200, 180) if kind == "five" else with_ibug(head(200, 180))
    for n in range(12):
        blend = SelfBlend(families={family: 1.0}).draw(np.random.default_rng((1, n)))
        real, fake = blend.pair(picture)
        mask_HW = fake.mask_HW
        assert mask_HW is not None
        np.testing.assert_array_equal(fake.image_HWC[mask_HW == 0], real.image_HWC[mask_HW == 0])
        np.testing.assert_array_equal(real.image_HWC, Steps(blend.target).apply(picture).image_HWC)
        np.testing.assert_array_equal(fake.landmarks_K2, picture.landmarks_K2)
        assert (mask_HW == 0).mean() > 0.4
        assert int(mask_HW.max()) == pytest.approx(255 * blend.mask.ratio, abs=1)
        changed = (fake.image_HWC != real.image_HWC).any(axis=2)
        assert changed[mask_HW > 0.9 * mask_HW.max()].mean() > 0.3
        # The source's share bounds the change.
        difference_HW = np.abs(fake.image_HWC.astype(int) - real.image_HWC).max(axis=2)
        assert (difference_HW <= mask_HW.astype(int) + 1).all()


def test_the_blend_is_a_weighted_mean() -> None:
    source = (BrightnessContrast(0.2, -0.3),)
    blend = Blend("colour", mask_of(ratio=0.6), source)
    real, fake = blend.pair(head())
    share = fake.mask_HW[..., None] / 255
    expected = (1 - share) * head().image_HWC + share * Steps(source).apply(head()).image_HWC
    assert np.abs(fake.image_HWC - expected).max() <= 0.51 + 1e-3
    np.testing.assert_array_equal(real.image_HWC, head().image_HWC)


def test_a_face_on_itself_is_no_change() -> None:
    fake = Blend("hull", mask_of()).apply(head())
    np.testing.assert_array_equal(fake.image_HWC, head().image_HWC)
    assert fake.mask_HW.max() == 255


def test_a_placement_moves_the_source_in_the_faces_units() -> None:
    picture = head(300, 300)
    left, right, *_ = picture.landmarks_K2.astype(float)
    moved = Placement(shift_xy=(0.2, 0.0)).matrix(Face.of(picture), Face.of(picture))
    np.testing.assert_allclose(moved[:, :2] @ left + moved[:, 2], left + 0.2 * (right - left), atol=1e-6)
    larger = Placement(scale_xy=(1.1, 1.1)).matrix(Face.of(picture), Face.of(picture))
    np.testing.assert_allclose(larger[:, :2], 1.1 * np.eye(2), atol=1e-9)
    middle = Face.of(picture).to_pixels([(0, 0.7)])[0]
    np.testing.assert_allclose(larger[:, :2] @ middle + larger[:, 2], middle, atol=1e-6)


def test_a_face_of_another_frame_is_laid_upon_this_frames() -> None:
    angle = np.radians(12)
    turn_33 = np.array([[np.cos(angle), -np.sin(angle), 30], [np.sin(angle), np.cos(angle), -20], [0, 0, 1]])
    turned_K2 = (head().landmarks_K2 @ turn_33[:2, :2].T + turn_33[:2, 2]).astype(np.float32)
    other = Picture(np.zeros((180, 190, 3), np.uint8), turned_K2)
    np.testing.assert_allclose(Placement().matrix(Face.of(head()), Face.of(other)), turn_33[:2], atol=1e-4)


def test_a_mask_is_the_shape_softened() -> None:
    picture = head(120, 120)
    face = Face.of(picture)
    hard = filled([face.to_pixels(p) for p in face.outline("hull")], 120, 120) > 0
    soft = mask_of(sigmas=(0.008, 0.03)).on(face, picture)
    assert soft.dtype == np.uint8
    inner, outer = binary_erosion(hard, iterations=14), ~binary_erosion(~hard, iterations=14, border_value=1)
    assert (soft[inner] == 255).all()
    assert not soft[~outer].any()
    assert len(np.unique(soft)) > 20
    np.testing.assert_allclose(center_of_mass(soft), center_of_mass(hard), atol=1.5)


def test_a_wide_first_filter_shrinks_the_mask_and_a_wide_second_softens_it() -> None:
    face, picture = Face.of(head()), head()
    areas = [(mask_of(sigmas=(first, 0.01)).on(face, picture) > 127).sum() for first in (0.004, 0.015, 0.027)]
    assert areas[0] > areas[1] > areas[2]
    edges = [
        ((m := mask_of(sigmas=(0.01, second)).on(face, picture)) > 0).sum() - (m == 255).sum()
        for second in (0.01, 0.05)
    ]
    assert edges[1] > 2 * edges[0]


def test_bends_move_the_outline() -> None:
    face, picture = Face.of(head(300, 300)), head(300, 300)
    plain = mask_of().on(face, picture)
    shifted = mask_of(bends_GG2=STILL + np.float32(0.2)).on(face, picture)
    offset = np.subtract(center_of_mass(shifted), center_of_mass(plain))
    expected = face.to_crop_23[:, :2] @ [0.2, 0.2]
    np.testing.assert_allclose(offset[::-1], expected, atol=0.5)
    rng = np.random.default_rng(3)
    bent = mask_of(bends_GG2=rng.normal(0, 0.06, STILL.shape).astype(np.float32)).on(face, picture)
    assert 0.01 < ((bent > 127) ^ (plain > 127)).mean() < 0.1


def test_masks_of_any_size_are_one_mask() -> None:
    for n in range(10):
        blend = EVERY.draw(np.random.default_rng((2, n)))
        large, small = (blend.mask.on(Face.of(p), p) for p in (head(450, 450), head(150, 150)))
        shrunk = cv2.resize(large, (150, 150), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(int) - small).mean() < 2.5


def test_frames_of_a_clip_share_a_still_blend() -> None:
    picture = head()
    for n in range(8):
        blend = EVERY.draw(np.random.default_rng((3, n)))
        first, second = blend.apply_clip([picture, picture])
        np.testing.assert_array_equal(first.image_HWC, second.image_HWC)
        np.testing.assert_array_equal(first.mask_HW, second.mask_HW)
        np.testing.assert_array_equal(first.image_HWC, blend.apply(picture).image_HWC)
        (alone,) = blend.reals([picture])
        np.testing.assert_array_equal(alone.image_HWC, blend.pair(picture)[0].image_HWC)


def test_a_jitter_moves_the_face_from_frame_to_frame() -> None:
    blend = Blend("hull", mask_of(), course=Course("jitter", seed=4))
    fakes = [fake.image_HWC for fake in blend.apply_clip([head()] * 3)]
    assert not np.array_equal(fakes[0], fakes[1])
    assert not np.array_equal(fakes[1], fakes[2])
    moments = [Course("jitter", seed=n).moment(0) for n in range(500)]
    shifts = np.array([m.shift_xy for m in moments])
    np.testing.assert_allclose(shifts.std(0), 0.03, rtol=0.15)
    assert Course("jitter", seed=4).moment(7) == Course("jitter", seed=4).moment(7)


def test_a_flicker_changes_strength_and_brightness() -> None:
    blend = Blend("hull", mask_of(), course=Course("flicker", seed=5))
    fakes = blend.apply_clip([head()] * 4)
    peaks = {int(fake.mask_HW.max()) for fake in fakes}
    assert len(peaks) == 4
    assert all(127 <= peak <= 255 for peak in peaks)


def test_a_frozen_face_stays_while_the_head_goes_on() -> None:
    course = Course("frozen", seed=6)
    sources = course.sources(200)
    assert sources[0] == 0
    assert all(s <= n for n, s in enumerate(sources))
    assert is_within_binomial(sum(s == n for n, s in enumerate(sources[1:], 1)), 199, 0.3)
    held = next(n for n in range(1, 200) if sources[n] == n - 1)
    assert course.sources(held + 1) == sources[: held + 1]
    bright = [head().with_image(np.full((150, 150, 3), level, np.uint8)) for level in range(held + 1)]
    fakes = Blend("hull", mask_of(), course=course).apply_clip(bright)
    middle = np.rint(Face.of(head()).to_pixels([(0, 0.5)])[0]).astype(int)
    assert fakes[held].image_HWC[middle[1], middle[0], 0] == held - 1
    assert fakes[held].image_HWC[0, 0, 0] == held
    assert Course("still").sources(3) == [0, 1, 2]


def test_families_ratios_and_rhythms_come_by_weight() -> None:
    weights = {"hull": 3.0, "warp": 1.0, "colour": 0.0}
    options = SelfBlend(families=weights, rhythms={"still": 1.0, "frozen": 1.0})
    draws = [options.draw(np.random.default_rng((7, n))) for n in range(2000)]
    families = Counter(draw.family for draw in draws)
    assert set(families) == {"hull", "warp"}
    assert is_within_binomial(families["hull"], 2000, 0.75)
    ratios = Counter(draw.mask.ratio for draw in draws)
    assert is_within_binomial(ratios[1.0], 2000, 0.5)
    for ratio in (0.25, 0.5, 0.75):
        assert is_within_binomial(ratios[ratio], 2000, 1 / 6)
    assert is_within_binomial(sum(draw.course.rhythm == "frozen" for draw in draws), 2000, 0.5)


def test_the_papers_draws() -> None:
    draws = [SelfBlend().draw(np.random.default_rng((8, n))) for n in range(2000)]
    assert {draw.family for draw in draws} == {"hull"}
    # Source or target passes the statistics, never both, never neither.
    assert all(bool(draw.source) != bool(draw.target) for draw in draws)
    assert is_within_binomial(sum(bool(draw.source) for draw in draws), 2000, 0.5)
    steps = [[type(s).__name__ for s in draw.source or draw.target] for draw in draws]
    assert is_within_binomial(sum("RgbShift" in names for names in steps), 2000, 0.3)
    assert is_within_binomial(sum("Downscale" in names for names in steps), 2000, 0.5)
    assert all(("Downscale" in names) != ("Sharpen" in names) for names in steps)
    assert all({"HueSaturation", "BrightnessContrast"} <= set(names) for names in steps)
    scales = np.array([draw.placement.scale_xy for draw in draws])
    assert 0.95 <= scales.min() < 0.96
    assert 1.04 < scales.max() <= 1.05
    assert {draw.mask.shapes for draw in draws} == {("hull",), ("extended",), ("inner",)}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("shape", [(16, 16), (150, 150), (90, 40)])
def test_landmarks_that_are_nowhere_still_give_fakes(kind: str, shape: tuple[int, int]) -> None:
    picture = Picture(head(*shape).image_HWC, BROKEN[kind])
    for n in range(8):
        fake = self_blend(picture, np.random.default_rng((9, n)), EVERY)
        assert fake.image_HWC.shape == picture.image_HWC.shape
        assert fake.mask_HW.any()


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (16, 16), (16, 60), (301, 97)])
def test_any_size(shape: tuple[int, int]) -> None:
    for n in range(25):
        fake = self_blend(head(*shape), np.random.default_rng((10, n)), EVERY)
        assert fake.image_HWC.shape == (*shape, 3)
        assert fake.image_HWC.dtype == np.uint8
        assert fake.mask_HW.any()


@pytest.mark.parametrize("offset", [(-70, 0), (70, 0), (0, -80), (0, 60), (-68, 55)])
def test_a_face_at_the_edge_never_gives_a_fake_without_a_change(offset: tuple[int, int]) -> None:
    picture = Picture(head().image_HWC, head().landmarks_K2 + np.array(offset, np.float32))
    for n in range(20):
        fake = self_blend(picture, np.random.default_rng((11, n)), EVERY)
        assert fake.mask_HW.max() >= 63


def test_a_shape_outside_the_picture_gives_way_to_the_usual_face() -> None:
    # The middle of the face is inside, the mouth is not.
    points_K2 = head().landmarks_K2.copy()
    points_K2 += np.array([0, 150 - 1 - points_K2.mean(0)[1]], np.float32)
    points_K2[3:, 1] += 60
    picture = Picture(head().image_HWC, points_K2 - np.array([0, 24], np.float32))
    assert Face.of(picture).is_known
    mask_HW = mask_of(shapes=("mouth",)).on(Face.of(picture), picture)
    row, column = center_of_mass(mask_HW)
    assert (row, column) == pytest.approx((0.72 * 150, 0.5 * 150), abs=6)


def test_grey_and_plain_pictures() -> None:
    grey = Picture(np.repeat(head().image_HWC[..., 1:2], 3, axis=2), head().landmarks_K2)
    for n in range(20):
        plain = grey.with_image(np.full((150, 150, 3), 60, np.uint8))
        for picture in (grey, plain):
            fake = self_blend(picture, np.random.default_rng((12, n)), EVERY)
            assert fake.image_HWC.shape == picture.image_HWC.shape


def test_one_seed_one_fake_and_nothing_from_outside() -> None:
    for n in range(10):
        np.random.seed(n)  # noqa: NPY002
        cv2.setRNGSeed(n)
        one = self_blend(head(), np.random.default_rng((13, n)), EVERY)
        cv2.setRNGSeed(n + 1)
        other = self_blend(head(), np.random.default_rng((13, n)), EVERY)
        np.testing.assert_array_equal(one.image_HWC, other.image_HWC)
        np.testing.assert_array_equal(one.mask_HW, other.mask_HW)
        blend = EVERY.draw(np.random.default_rng((13, n)))
        again = pickle.loads(pickle.dumps(blend)).apply(head())
        np.testing.assert_array_equal(one.image_HWC, again.image_HWC)


def test_pictures_are_not_written_into() -> None:
    before, copy = head(mask=True), head(mask=True)
    for n in range(14):
        EVERY.draw(np.random.default_rng((14, n))).pair(before)
    np.testing.assert_array_equal(before.image_HWC, copy.image_HWC)
    np.testing.assert_array_equal(before.mask_HW, copy.mask_HW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": {"swap": 1.0}}, "there is no swap"),
        ({"families": {}}, "one above 0"),
        ({"families": {"hull": -1.0}}, "weights of 0 or more"),
        ({"families": {"hull": float("nan")}}, "weights of 0 or more"),
        ({"families": {"hull": 0.0}}, "one above 0"),
        ({"rhythms": {"waltz": 1.0}}, "rhythms of self-blends are still, jitter, flicker, frozen; there is no waltz"),
        ({"ratios": ()}, "above 0, up to 1"),
        ({"ratios": (0.5, 1.5)}, "above 0, up to 1"),
    ],
)
def test_options_are_checked(options, message) -> None:
    with pytest.raises(UsageError, match=message):
        SelfBlend(**options)


def test_a_warp_moves_the_face_and_not_its_surroundings() -> None:
    shifts = STILL.copy()
    shifts[1:-1, 1:-1] = 0.05
    rng = np.random.default_rng(0)
    picture = Picture(rng.integers(0, 256, (600, 600, 3), np.uint8), head(300, 300).landmarks_K2 + np.float32(150))
    warp = FaceWarp(shifts)
    field = warp.shifts_px(picture)
    width_px = Face.of(picture).width_px
    x, y = np.rint(Face.of(picture).to_pixels([(0, 0.7)])[0]).astype(int)
    assert field[y, x] == pytest.approx([0.05 * width_px] * 2, rel=0.01)
    rows, columns = np.indices((600, 600))
    distance = np.maximum(np.abs(rows - y), np.abs(columns - x))
    assert not field[distance > width_px].any()
    assert np.abs(field[distance > 0.72 * width_px]).max() < 0.13 * 0.05 * width_px  # of which a cubic spline rings
    after = warp(picture)
    far = np.abs(field).max(axis=2) == 0
    np.testing.assert_array_equal(after.image_HWC[far], picture.image_HWC[far])
    assert (after.image_HWC != picture.image_HWC).any()


def test_landmarks_follow_a_warp() -> None:
    rng = np.random.default_rng(15)
    warp = FaceWarp(rng.normal(0, 0.03, (GRID, GRID, 2)).astype(np.float32))
    picture = head(300, 300)
    spots = np.zeros((300, 300), np.uint8)
    x, y = np.rint(picture.landmarks_K2[2]).astype(int)
    spots[y - 3 : y + 4, x - 3 : x + 4] = 255
    after = warp(Picture(picture.image_HWC, picture.landmarks_K2, spots))
    row, column = center_of_mass(after.mask_HW)
    assert np.hypot(column - x, row - y) > 1
    assert (column, row) == pytest.approx(after.landmarks_K2[2].tolist(), abs=1)
