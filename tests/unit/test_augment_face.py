from typing import get_args

import numpy as np
import pytest

from tests.heads import BROKEN, drawn_face, head, ibug_units, with_ibug
from train.augment.face import Face, Shape, filled, five_points
from train.augment.picture import Picture

SHAPES: tuple[Shape, ...] = get_args(Shape)


def turned(points_N2, degrees: float, scale: float, shift) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points_N2 @ rotation.T + shift


def drawn(shape: Shape, face: Face) -> list[np.ndarray]:
    return [face.to_pixels(polygon) for polygon in face.outline(shape)]


def test_units_are_the_eyes_and_the_mouth() -> None:
    picture = drawn_face(200, eyes_px=50, mouth_px=60)
    face = Face.of(picture)
    assert face.is_known
    np.testing.assert_allclose(
        face.to_units(picture.landmarks_K2), [[-0.5, 0], [0.5, 0], [0, 0.55], [-0.4, 1], [0.4, 1]], atol=1e-5
    )
    np.testing.assert_allclose(face.to_pixels([[0, 0], [0.5, 1]]), [[99.5, 80], [124.5, 140]], atol=1e-4)
    assert face.width_px == pytest.approx(115)
    assert face.yaw == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["five", "ibug"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_turn_and_grow_with_the_face(kind: str, shape: Shape) -> None:
    before = head() if kind == "five" else with_ibug(head())
    points_K2 = turned(before.landmarks_K2, 25, 2.2, (60, -10)).astype(np.float32)
    after = Picture(np.zeros((400, 400, 3), np.uint8), points_K2)
    for one, other in zip(drawn(shape, Face.of(before)), drawn(shape, Face.of(after)), strict=True):
        expected = turned(one, 25, 2.2, (60, -10))
        # A hull's first point may be another.
        nearest = np.hypot(*(expected[:, None] - other[None]).transpose(2, 0, 1)).min(1)
        assert nearest.max() < 0.05


def test_five_of_sixty_eight() -> None:
    units = ibug_units().astype(np.float32)
    np.testing.assert_allclose(five_points(units), [[-0.5, 0], [0.5, 0], [0, 0.55], [-0.4, 1], [0.4, 1]], atol=1e-6)


def test_the_hull_of_sixty_eight_holds_them_all() -> None:
    from scipy.spatial import ConvexHull

    picture = with_ibug(head())
    (hull_N2,) = drawn("hull", Face.of(picture))
    expected = picture.landmarks_K2[ConvexHull(picture.landmarks_K2).vertices]
    gaps = np.hypot(*(expected[:, None] - hull_N2[None]).transpose(2, 0, 1))
    assert gaps.min(1).max() < 1e-3
    assert gaps.min(0).max() < 1e-3


@pytest.mark.parametrize("kind", ["five", "ibug"])
def test_shapes_lie_where_they_should(kind: str) -> None:
    picture = head(300, 300) if kind == "five" else with_ibug(head(300, 300))
    face = Face.of(picture)
    masks = {shape: filled(drawn(shape, face), 300, 300) > 0 for shape in SHAPES}
    points = np.rint(face.points_52).astype(int)
    covers = {shape: [bool(masks[shape][y, x]) for x, y in points] for shape in SHAPES}
    everything = [True] * 5
    assert covers["hull"] == covers["extended"] == covers["ellipse"] == everything
    assert covers["inner"] == everything
    assert covers["eyes"] == [True, True, False, False, False]
    assert covers["nose"] == [False, False, True, False, False]
    assert covers["mouth"] == [False, False, False, True, True]
    assert not any(covers["lower"][:2])
    assert all(covers["lower"][3:])
    assert (masks["extended"] >= masks["hull"]).mean() > 0.999
    assert masks["extended"].sum() > 1.1 * masks["hull"].sum()
    assert masks["inner"].sum() < 0.75 * masks["hull"].sum()
    assert 0.8 < masks["ellipse"].sum() / masks["hull"].sum() < 1.25


def test_the_far_side_of_a_turned_head_is_narrow() -> None:
    points_K2 = drawn_face().landmarks_K2.copy()
    points_K2[2, 0] += 15  # the nose goes to the viewer's right: the head is turned there
    (hull_N2,) = Face.of(Picture(drawn_face().image_HWC, points_K2)).outline("hull")
    assert hull_N2[:, 0].max() < 0.75
    assert hull_N2[:, 0].min() < -1.2


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("shape", [(16, 16), (150, 150), (90, 40), (1, 1)])
def test_landmarks_that_cannot_be_a_face_give_the_usual_face(kind: str, shape: tuple[int, int]) -> None:
    picture = Picture(head(*shape).image_HWC, BROKEN[kind])
    face = Face.of(picture)
    # 40, 40 five times lies inside the larger crops and is refused for its size.
    assert not face.is_known
    left, right, nose, *mouth = face.points_52 / [shape[1], shape[0]]
    assert left[0] < nose[0] < right[0]
    assert left[1] < nose[1] < mouth[0][1]
    assert all(np.isfinite(polygon).all() for name in SHAPES for polygon in face.outline(name))


def test_a_few_missing_points_cost_the_hull_only() -> None:
    picture = with_ibug(head())
    picture.landmarks_K2[3] = np.nan
    face = Face.of(picture)
    assert face.is_known
    assert face.ibug_K2 is None
    np.testing.assert_allclose(face.points_52, five_points(picture.landmarks_K2))


@pytest.mark.parametrize(
    "change",
    [
        {0: (70, 65), 1: (70, 65)},  # both eyes in one place
        {3: (75, 66), 4: (75, 66)},  # the mouth between the eyes
        {0: (95, 65), 1: (55, 65)},  # the eyes changed over
        {2: (0, 0)},  # the nose far away
        {3: (75, 10), 4: (80, 10)},  # upside down
    ],
)
def test_odd_faces_still_have_shapes(change) -> None:
    points_K2 = head().landmarks_K2.copy()
    for n, place in change.items():
        points_K2[n] = place
    face = Face.of(Picture(head().image_HWC, points_K2))
    for shape in SHAPES:
        assert all(np.isfinite(polygon).all() for polygon in drawn(shape, face))
        assert filled(drawn(shape, face), 150, 150).any()


def test_a_face_at_the_edge_is_taken_as_it_is() -> None:
    points_K2 = head().landmarks_K2 - np.array([60, 0], np.float32)
    face = Face.of(Picture(head().image_HWC, points_K2))
    assert face.is_known
    assert face.points_52[0, 0] < 0


def test_filling_counts_pixels() -> None:
    square = np.array([[2, 3], [9, 3], [9, 7], [2, 7]], float)
    mask_HW = filled([square], 12, 12)
    expected = np.zeros((12, 12), np.uint8)
    expected[3:8, 2:10] = 255
    np.testing.assert_array_equal(mask_HW, expected)
    assert not filled([square + 1e9], 12, 12).any()
