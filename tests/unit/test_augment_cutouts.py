from collections import Counter
from typing import get_args

import numpy as np
import pytest
from scipy.spatial import Delaunay

from tests.heads import BROKEN, drawn_face, head, is_within_binomial, with_ibug
from train.augment.cutouts import HalfFace, HalfPicture, Landmark, Part, RemoveLandmark, Side, draw_cutout
from train.augment.picture import Picture

LANDMARKS: tuple[Landmark, ...] = get_args(Landmark)
SIDES: tuple[Side, ...] = get_args(Side)
PARTS: tuple[Part, ...] = get_args(Part)


def is_black(picture: Picture) -> np.ndarray:
    return (picture.image_HWC == 0).all(axis=2)


def distance_to_segment(shape, start, end) -> np.ndarray:
    rows, columns = np.indices(shape)
    points = np.stack([columns, rows], -1) - start
    along = np.clip(points @ (end - start) / ((end - start) @ (end - start)), 0, 1)
    return np.linalg.norm(points - along[..., None] * (end - start), axis=-1)


def test_rates() -> None:
    tries = 6000
    counts: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for n in range(tries):
        cutouts = list(draw_cutout(np.random.default_rng((7, n))))
        assert len(cutouts) <= 1
        for step in cutouts:
            counts[str(step) if isinstance(step, RemoveLandmark) else type(step).__name__] += 1
            if isinstance(step, HalfFace):
                parts[step.side] += 1
    expected = {
        "no eyes": 0.7 * 0.5,
        "no mouth": 0.7 * 0.25,
        "no nose": 0.7 * 0.125,
        "HalfFace": 0.3 * 0.2,
        "HalfPicture": 0.3 * 0.8 * 0.1,
    }
    assert set(counts) == set(expected)
    for name, p in expected.items():
        assert is_within_binomial(counts[name], tries, p), name
    for side in SIDES:
        assert is_within_binomial(parts[side], counts["HalfFace"], 1 / 4)


def test_all_six_parts_are_as_likely() -> None:
    drawn: Counter[str] = Counter()
    for n in range(30_000):
        for step in draw_cutout(np.random.default_rng((8, n))):
            if isinstance(step, HalfPicture):
                drawn[step.parts[0]] += 1
    total = sum(drawn.values())
    assert all(is_within_binomial(drawn[part], total, 1 / 6) for part in PARTS)


@pytest.mark.parametrize("landmark", LANDMARKS)
@pytest.mark.parametrize("kind", ["five", "ibug"])
def test_a_landmark_is_covered_by_a_bar(landmark: Landmark, kind: str) -> None:
    white = drawn_face(200, eyes_px=50, mouth_px=60)
    picture = white if kind == "five" else with_ibug(white)
    left, right, nose, mouth_left, mouth_right = white.landmarks_K2.astype(float)
    start, end, share = {
        "eyes": (left, right, 1 / 4),
        "nose": ((left + right) / 2, nose, 1 / 4),
        "mouth": (mouth_left, mouth_right, 1 / 3),
    }[landmark]
    distance = distance_to_segment((200, 200), start, end)
    radius = share * np.linalg.norm(end - start)
    black = is_black(RemoveLandmark(landmark)(picture))
    assert black[distance < radius - 1].all()
    assert not black[distance > radius + 1].any()


@pytest.mark.parametrize("side", SIDES)
def test_half_of_an_ellipse_where_five_points_are_known(side: Side) -> None:
    picture = drawn_face(240, eyes_px=60, mouth_px=60)
    middle, level = (240 - 1) / 2, 0.4 * 240
    rows, columns = np.indices((240, 240))
    across, down = (columns - middle) / (1.14 * 60), (rows - level - 0.71 * 60) / (1.12 * 60)
    radius = np.hypot(across, down)
    half = {"top": down < -0.03, "bottom": down > 0.03, "left": across < -0.03, "right": across > 0.03}[side]
    other = {"top": down > 0.03, "bottom": down < -0.03, "left": across > 0.03, "right": across < -0.03}[side]
    black = is_black(HalfFace(side)(picture))
    assert black[half & (radius < 0.97)].all()
    assert not black[other | (radius > 1.03)].any()


@pytest.mark.parametrize("side", SIDES)
def test_half_of_the_hull_where_68_points_are_known(side: Side) -> None:
    picture = with_ibug(Picture(np.full((300, 260, 3), 255, np.uint8), head(300, 260).landmarks_K2))
    rows, columns = np.indices((300, 260))
    pixels = np.stack([columns, rows], -1).reshape(-1, 2)
    inside = (Delaunay(picture.landmarks_K2).find_simplex(pixels) >= 0).reshape(300, 260)
    row, column = rows[inside].mean(), columns[inside].mean()
    half = {
        "top": rows < row - 1,
        "bottom": rows > row + 1,
        "left": columns < column - 1,
        "right": columns > column + 1,
    }
    black = is_black(HalfFace(side)(picture))
    # The edge itself may go either way.
    edge = inside ^ np.roll(inside, 1, 0) | inside ^ np.roll(inside, 1, 1)
    edge |= inside ^ np.roll(inside, -1, 0) | inside ^ np.roll(inside, -1, 1)
    assert black[inside & half[side] & ~edge].all()
    assert not black[~inside & ~edge].any()
    assert black.sum() == pytest.approx(inside.sum() / 2, rel=0.15)


@pytest.mark.parametrize("shape", [(10, 12), (11, 13)])
def test_parts_of_the_picture(shape: tuple[int, int]) -> None:
    white = Picture(np.full((*shape, 3), 255, np.uint8), head().landmarks_K2)
    corners = {}
    for part in PARTS:
        black = is_black(HalfPicture((part,))(white))
        assert black.mean() == pytest.approx(0.5, abs=0.05)
        corners[part] = [bool(black[y, x]) for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
    assert corners == {
        "top": [True, True, False, False],
        "bottom": [False, False, True, True],
        "left": [True, False, True, False],
        "right": [False, True, False, True],
        "falling": [True, False, False, True],
        "rising": [False, True, True, False],
    }


def test_a_part_that_hides_every_trace_is_passed_over() -> None:
    mask_HW = np.zeros((100, 100), np.uint8)
    mask_HW[10:30, 60:80] = 255
    white = Picture(np.full((100, 100, 3), 255, np.uint8), head().landmarks_K2, mask_HW)
    after = HalfPicture(("top", "right", "rising", "left", "top"))(white)
    assert is_black(after)[:, :50].all()
    assert not is_black(after)[:, 50:].any()
    np.testing.assert_array_equal(after.mask_HW, mask_HW)
    assert HalfPicture(("top", "right"))(white) is white
    # A real face, whose mask is black or missing, has no trace to lose.
    real = Picture(white.image_HWC, white.landmarks_K2, np.zeros((100, 100), np.uint8))
    assert is_black(HalfPicture(("top", "left"))(real))[:50].all()


@pytest.mark.parametrize("step", [RemoveLandmark("eyes"), HalfFace("left"), HalfPicture(("top",))], ids=str)
def test_what_is_cut_out_is_gone_from_the_mask_and_nothing_else_changes(step) -> None:
    before = head()
    full = Picture(np.maximum(before.image_HWC, 1), before.landmarks_K2, np.full((150, 150), 255, np.uint8))
    after = step(full)
    black = is_black(after)
    assert 0.01 < black.mean() < 0.6
    assert after.mask_HW is not None
    np.testing.assert_array_equal(after.mask_HW == 0, black)
    np.testing.assert_array_equal(after.image_HWC[~black], full.image_HWC[~black])
    assert (full.image_HWC > 0).all()


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("shape", [(16, 16), (150, 150), (40, 90)])
def test_without_landmarks_the_usual_place_is_cut_out(kind: str, shape: tuple[int, int]) -> None:
    white = Picture(np.full((*shape, 3), 255, np.uint8), BROKEN[kind])
    for step in (*map(RemoveLandmark, LANDMARKS), *map(HalfFace, SIDES)):
        black = is_black(step(white))
        assert black.any()
        rows, columns = np.nonzero(black)
        assert abs(columns.mean() / shape[1] - 0.5) < 0.3
        assert abs(rows.mean() / shape[0] - 0.5) < 0.3


def test_a_face_at_the_edge_is_cut_as_far_as_it_is_seen() -> None:
    before = drawn_face()
    points_K2 = before.landmarks_K2 - np.array([95, 0], np.float32)
    black = is_black(RemoveLandmark("eyes")(Picture(before.image_HWC, points_K2)))
    assert black[80, 0]
    assert not black[:, 60:].any()


def test_frames_of_any_size_lose_the_same_share() -> None:
    for step in (*map(RemoveLandmark, LANDMARKS), *map(HalfFace, SIDES)):
        shares = []
        for side in (160, 400):
            picture = drawn_face(side, eyes_px=side / 4, mouth_px=side / 4)
            shares.append(is_black(step(picture)).mean())
        assert shares[0] == pytest.approx(shares[1], rel=0.12)  # a polygon takes the pixels on its edge
