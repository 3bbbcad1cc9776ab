import cv2
import numpy as np
import pytest
import skimage.data
import skimage.measure
from numpy.typing import NDArray

from unmask.quality import HEAD_K3, head_pose_deg, measured, quality_of, sharpness_of, typical
from unmask.records import FaceQuality, Faces

# The face in scikit-image's portrait.
BOX = np.array([174, 72, 272, 200], np.float32)


def portrait() -> NDArray[np.uint8]:
    return np.asarray(skimage.data.astronaut(), np.uint8)


def scaled(image_HWC: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image_HWC, None, fx=factor, fy=factor, interpolation=method), np.uint8)


# --- sharpness ------------------------------------------------------------------------------------------------------


def test_it_is_the_published_measure() -> None:
    """scikit-image has the same measure, with another differential and other edges."""
    from PIL import Image

    for sigma in (0.01, 1, 2, 4):
        image_HWC = cv2.GaussianBlur(portrait(), (0, 0), sigma)
        x1, y1, x2, y2 = BOX.astype(int)
        grey = np.asarray(Image.fromarray(image_HWC[y1:y2, x1:x2]).convert("L"), np.float64)
        expected = 1 - skimage.measure.blur_effect(grey, h_size=11, channel_axis=None)
        assert sharpness_of(image_HWC, BOX) == pytest.approx(expected, abs=0.12), sigma


def test_blur_lowers_it_step_by_step() -> None:
    values = [sharpness_of(cv2.GaussianBlur(portrait(), (0, 0), s), BOX) for s in (0.01, 0.5, 1, 1.5, 2, 3, 4, 6, 8)]
    assert (np.diff(values) < 0).all()
    assert values[0] > 0.5
    assert values[-1] < 0.15


def test_motion_along_one_axis_is_blur() -> None:
    """The other axis keeps its detail, and does not hide it."""
    still = sharpness_of(portrait(), BOX)
    for kernel in ((9, 1), (1, 9)):
        assert sharpness_of(cv2.blur(portrait(), kernel), BOX) < 0.6 * still


def test_size_makes_no_difference() -> None:
    """Neither above the standard size, to which all are shrunk, nor below, where small faces keep their pixels."""
    above = [sharpness_of(scaled(portrait(), f), BOX * f) for f in (1.5, 2, 3, 4)]
    assert max(above) - min(above) < 0.03
    below = [sharpness_of(scaled(portrait(), f), BOX * f) for f in (1, 0.8, 0.64, 0.5)]
    assert max(below) - min(below) < 0.08


def test_enlarging_brings_no_sharpness_back() -> None:
    values = [sharpness_of(scaled(scaled(portrait(), f), 4 / f), BOX * 4) for f in (0.8, 0.4, 0.2)]
    assert values[0] > values[1] > values[2]
    assert values[2] < 0.35


def test_brightness_and_contrast_cancel() -> None:
    grey_HWC = (portrait() // 4 * 2 + 60).astype(np.uint8)
    assert sharpness_of(grey_HWC, BOX) == pytest.approx(sharpness_of(portrait(), BOX), abs=0.03)


@pytest.mark.parametrize("box", [(-400, 0, -300, 100), (600, 600, 700, 700), (100, -90, 200, 0), (9, 9, 10, 10)])
def test_what_cannot_be_seen_is_not_sharp(box: tuple[float, ...]) -> None:
    assert sharpness_of(portrait(), np.array(box, np.float32)) == 0.0


def test_no_contrast_is_no_sharpness() -> None:
    assert sharpness_of(np.full((200, 200, 3), 77, np.uint8), np.array([20, 20, 150, 150], np.float32)) == 0.0


def test_what_lies_outside_the_frame_is_left_out() -> None:
    """A black margin would be an edge."""
    smooth = cv2.GaussianBlur(portrait(), (0, 0), 6)[:, 200:]
    outside = sharpness_of(smooth, BOX - np.array([200, 0, 200, 0], np.float32))
    assert outside < 0.25


# --- pose -----------------------------------------------------------------------------------------------------------


def rotation(yaw_deg: float, pitch_deg: float, roll_deg: float) -> NDArray[np.float64]:
    """Written out: first about the vertical axis, then up or down, then in the picture; y down, z away."""
    yaw, pitch, roll = np.radians([yaw_deg, pitch_deg, roll_deg])
    about_y = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_x @ about_y)


def seen(yaw_deg: float, pitch_deg: float, roll_deg: float, distance: float = np.inf) -> NDArray[np.float32]:
    """The landmarks of the model's head as a camera sees it, at so many distances between the eyes."""
    points_K3 = HEAD_K3 @ rotation(yaw_deg, pitch_deg, roll_deg).T
    depth_K1 = 1.0 if np.isinf(distance) else (1 + points_K3[:, 2:] / distance)
    return (points_K3[:, :2] / depth_K1 * 57 + np.array([640, 360])).astype(np.float32)


@pytest.mark.parametrize("yaw", [-80, -40, 0, 25, 60])
@pytest.mark.parametrize("roll", [-50, 0, 120])
def test_a_turned_head_is_measured(yaw: float, roll: float) -> None:
    """As far as the nose points to the side; with roll, to the side of the head."""
    measured_yaw, pitch, measured_roll = head_pose_deg(seen(yaw, 0, 0))
    assert (measured_yaw, pitch, measured_roll) == pytest.approx((yaw, 0, 0), abs=0.01)
    nose = rotation(yaw, 0, roll) @ np.array([0, 0, -1.0])
    found = np.radians(head_pose_deg(seen(yaw, 0, roll)))
    points = [np.sin(found[0]) * np.cos(found[1]), np.sin(found[1]), -np.cos(found[0]) * np.cos(found[1])]
    assert points == pytest.approx(nose, abs=1e-3)


@pytest.mark.parametrize("pitch", [-60, -20, 0, 35])
def test_up_and_down(pitch: float) -> None:
    assert head_pose_deg(seen(0, pitch, 0)) == pytest.approx((0, pitch, 0), abs=0.01)


@pytest.mark.parametrize("roll", [-170, -30, 10, 90])
def test_a_tilted_head(roll: float) -> None:
    assert head_pose_deg(seen(0, 0, roll)) == pytest.approx((0, 0, roll), abs=0.01)


def test_a_camera_nearby_makes_small_errors() -> None:
    """At ten distances between the eyes, 63 cm."""
    for yaw, pitch in ((30, 0), (-45, 10), (0, -25), (60, 0)):
        found = head_pose_deg(seen(yaw, pitch, 0, distance=10))
        assert found[0] == pytest.approx(yaw, abs=8)
        assert found[1] == pytest.approx(pitch, abs=8)


def test_size_and_place_make_no_difference() -> None:
    landmarks_K2 = seen(33, -12, 8)
    small_K2 = ((landmarks_K2 - 500) / 7).astype(np.float32)
    assert head_pose_deg(small_K2) == pytest.approx(head_pose_deg(landmarks_K2), abs=0.01)


def test_landmarks_in_one_place_are_frontal() -> None:
    assert head_pose_deg(np.full((5, 2), 7, np.float32)) == pytest.approx((0, 0, 0))


# --- together -------------------------------------------------------------------------------------------------------


def test_a_face_has_all_of_it() -> None:
    boxes_N4 = np.stack([BOX, BOX + 30])
    faces = Faces(boxes_N4, np.ones(2, np.float32), np.stack([seen(-20, 5, 3), seen(0, 0, -9)]))
    assert quality_of(faces, 0).sharpness is None
    known = measured(portrait(), faces)
    first, second = quality_of(known, 0), quality_of(known, 1)
    assert (first.side_px, first.sharpness) == (98.0, float(np.float32(sharpness_of(portrait(), BOX))))
    assert first.yaw_deg == pytest.approx(20, abs=2)
    assert second.roll_deg == pytest.approx(9, abs=0.01)
    assert second.sharpness != first.sharpness
    none = measured(portrait(), Faces.none())
    assert none.sharpness_N is not None
    assert none.sharpness_N.shape == (0,)


def test_the_median_of_each_value() -> None:
    found = typical([FaceQuality(50, 0.5, 1, 9, 0), FaceQuality(90, None, 3, 8, 0), FaceQuality(70, 0.1, 2, 7, 6)])
    assert (found.side_px, found.yaw_deg, found.pitch_deg, found.roll_deg) == (70, 2, 8, 0)
    assert found.sharpness == pytest.approx(0.3)
    assert typical([FaceQuality(50, None, 0, 0, 0)]).sharpness is None
