import cv2
import numpy as np
import pytest
import skimage.data

from unmask.faces import align, cut, enlarge, face_side_px


def test_enlarge_keeps_the_centre_and_scales_the_sides() -> None:
    box = np.array([10, 20, 40, 80], np.float32)
    np.testing.assert_allclose(enlarge(box, 1.0), box)
    np.testing.assert_allclose(enlarge(box, 1.3), [5.5, 11, 44.5, 89])
    np.testing.assert_allclose(enlarge(box, 5 / 3), [0, 0, 50, 100])  # a third of each side on each side
    np.testing.assert_allclose(enlarge(box, 1.0, square=True), [-5, 20, 55, 80])


def test_cut_inside_is_the_slice_and_a_copy() -> None:
    image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    piece = cut(image, np.array([3.4, 2.6, 10.5, 9.2]))
    np.testing.assert_array_equal(piece, image[3:9, 3:11])
    piece[:] = 0
    assert image[5, 5].any()


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-5, -4, 5, 6], (10, 10)),
        ([25, 15, 35, 25], (10, 10)),
        ([100, 100, 110, 120], (20, 10)),
        ([5, 5, 5.2, 5.1], (1, 1)),
    ],
)
def test_cut_fills_the_outside_with_black(box: list[float], expected: tuple[int, int]) -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    piece = cut(image, np.array(box))
    assert piece.shape == (*expected, 3)
    inside = max(0, min(box[2], 30) - max(box[0], 0)) * max(0, min(box[3], 20) - max(box[1], 0))
    if inside >= 1:
        assert (piece == 200).sum() == inside * 3
        assert (piece == 0).sum() == piece.size - inside * 3


def test_face_side_is_the_shorter_one() -> None:
    assert face_side_px(np.array([0, 0, 30, 50], np.float32)) == 30


@pytest.mark.parametrize("margin", [1.0, 1.3])
def test_alignment_undoes_rotation_and_scale(margin: float) -> None:
    portrait = skimage.data.astronaut()
    landmarks = np.array([[205, 110], [243, 110], [224, 130], [208, 152], [240, 152]], np.float32)
    upright = align(portrait, landmarks, margin)
    matrix = cv2.getRotationMatrix2D((222, 118), 25, 1.6) + np.array([[0, 0, 100.0], [0, 0, 200.0]])
    turned = cv2.warpAffine(portrait, matrix, (768, 768), flags=cv2.INTER_CUBIC)
    moved = (landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    again = align(turned, moved, margin)
    assert again.shape[0] == pytest.approx(1.6 * upright.shape[0], abs=2)
    shrunk = cv2.resize(again, upright.shape[:2], interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - upright).mean() < 4
    assert np.abs(upright.astype(int) - upright[::-1]).mean() > 20  # the measure does tell pictures apart


def test_alignment_puts_the_landmarks_on_the_template() -> None:
    template = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2]]
    )
    picture = np.zeros((112, 112, 3), np.uint8)
    for x, y in template:
        cv2.circle(picture, (round(x * 16), round(y * 16)), 2 * 16, (255, 255, 255), -1, shift=4)
    np.testing.assert_allclose(align(picture, template.astype(np.float32), 1.0).astype(int), picture, atol=25)
