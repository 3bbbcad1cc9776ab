"""How well a face can be seen: its size, its sharpness and how far it is turned.

Where one of them is poor, a score says little, and `unmask.scoring.judge` abstains.

Axes: H rows, W columns, C = 3 channels in RGB order; N faces; K = 5 landmarks; boxes are x1, y1, x2, y2 in pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from unmask.faces import cut_corners, face_side_px
from unmask.records import FaceQuality, Faces

__all__ = ["HEAD_K3", "head_pose_deg", "measured", "quality_of", "sharpness_of", "typical"]

# The shorter side to which a face is shrunk before its sharpness is measured: about what small networks see of it.
_STANDARD_PX = 112
# Of the low-pass that blurs once more; the paper takes 9, scikit-image 11.
_BLUR_PX = 11
# Grey levels from pixel to pixel: what is less is rounding.
_LEAST_CHANGE = 1e-3

HEAD_K3: NDArray[np.float64] = np.array(
    [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.57, -0.6], [-0.41, 1.155, -0.1], [0.41, 1.155, -0.1]]
)
"""The head that poses refer to: eyes, nose, corners of the mouth; x to the viewer's right, y down, z away from the
camera, in distances between the eyes. Across and down as in ArcFace's template (Deng et al. 2019) of frontal faces;
depths as in MediaPipe's canonical face (Kartynnik et al. 2019), rounded."""

_FROM_HEAD_3K = np.linalg.pinv(HEAD_K3 - HEAD_K3.mean(0))


def measured(image_HWC: NDArray[np.uint8], faces: Faces) -> Faces:
    """The same faces, with their sharpness. To be called where the frame is at hand, for all faces that may be scored.

    Args:
        image_HWC: The frame at full resolution, uint8 (H, W, 3).
        faces: Found in it.
    """
    sharpness_N = [sharpness_of(image_HWC, box_4) for box_4 in faces.boxes_N4]
    return replace(faces, sharpness_N=np.array(sharpness_N, np.float32))


def quality_of(faces: Faces, row: int) -> FaceQuality:
    """What is known of one of a frame's faces."""
    yaw_deg, pitch_deg, roll_deg = head_pose_deg(faces.landmarks_NK2[row])
    sharpness = np.nan if faces.sharpness_N is None else float(faces.sharpness_N[row])
    return FaceQuality(
        side_px=face_side_px(faces.boxes_N4[row]),
        sharpness=None if np.isnan(sharpness) else sharpness,
        yaw_deg=abs(yaw_deg),
        pitch_deg=abs(pitch_deg),
        roll_deg=abs(roll_deg),
    )


def typical(qualities: Sequence[FaceQuality]) -> FaceQuality:
    """The median of each value over a track.

    Args:
        qualities: At least one. The sharpness is that of those whose sharpness is known.
    """
    known = [q.sharpness for q in qualities if q.sharpness is not None]
    side_px, yaw_deg, pitch_deg, roll_deg = np.median(
        [(q.side_px, q.yaw_deg, q.pitch_deg, q.roll_deg) for q in qualities], axis=0
    ).tolist()
    return FaceQuality(side_px, float(np.median(known)) if known else None, yaw_deg, pitch_deg, roll_deg)


def sharpness_of(image_HWC: NDArray[np.uint8], box_4: NDArray[np.floating[Any]]) -> float:
    """How much of the change from pixel to pixel a further blur takes away: of a blurred face, little.

    One minus the blur metric of Crété-Roffet et al. ("The blur effect", SPIE 6492, 2007), of the grey face, shrunk to a
    shorter side of 112 px and never enlarged: the size of the face makes no difference as long as its detail is there.
    Brightness and contrast cancel. Of the two axes the more blurred one counts, so that motion shows. Noise and the
    edges of coding blocks count as detail, and below 112 px blur is told by pixels, not by shares of the face.

    Args:
        image_HWC: The frame, uint8 (H, W, 3).
        box_4: The face's box; what lies outside the frame is left out.

    Returns:
        In [0, 1]; 0 for a face without any contrast, or outside the frame.
    """
    height, width, _ = image_HWC.shape
    x1, y1, x2, y2 = cut_corners(box_4)
    inside_HWC = image_HWC[max(y1, 0) : max(min(y2, height), 0), max(x1, 0) : max(min(x2, width), 0)]
    if min(inside_HWC.shape[:2]) < 2:
        return 0.0
    # As real numbers from here on: the steps of whole ones would be all the detail that a very blurred face has.
    grey_HW = cv2.cvtColor(inside_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    scale = _STANDARD_PX / min(x2 - x1, y2 - y1)
    if scale < 1:
        size = tuple(max(round(side * scale), 2) for side in grey_HW.shape[::-1])
        grey_HW = np.asarray(cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA), np.float32)
    return min(_taken_away(grey_HW), _taken_away(np.ascontiguousarray(grey_HW.T)))


def _taken_away(grey_HW: NDArray[np.float32]) -> float:
    """The share of the absolute differences along the rows that a blur along them takes away, in [0, 1]."""
    if grey_HW.shape[1] <= _BLUR_PX:
        return 0.0
    # Where the blur would reach over the edge, it knows nothing.
    inside = slice(_BLUR_PX // 2, -(_BLUR_PX // 2))
    blurred_HW = cv2.blur(grey_HW, (_BLUR_PX, 1))[:, inside]
    before_HW, after_HW = np.abs(np.diff(grey_HW[:, inside])), np.abs(np.diff(blurred_HW))
    total = float(before_HW.sum(dtype=np.float64))
    if total < _LEAST_CHANGE * before_HW.size:
        return 0.0
    return float(np.maximum(before_HW - after_HW, 0).sum(dtype=np.float64)) / total


def head_pose_deg(landmarks_K2: NDArray[np.floating[Any]]) -> tuple[float, float, float]:
    """Which way a head is turned, as far as five landmarks tell.

    The linear map that best takes `HEAD_K3` to the landmarks, then the rotation that is nearest to it: a camera far
    away (the POS of DeMenthon and Davis 1995, by singular values). A real head is another than `HEAD_K3`: expect errors
    of some 15 degrees, the most in pitch, where a smile that lifts the corners of the mouth looks like a bowed head.
    MTCNN's landmarks fall short of large angles: heads turned by 60 degrees measure some 30 to 50.

    Args:
        landmarks_K2: (5, 2), x and y in pixels. If all are in one place, the face counts as frontal.

    Returns:
        Yaw (positive: the nose points to the right of the picture), pitch (positive: down), roll (positive: turned
        clockwise in the picture), in degrees: yaw and roll in [-180, 180], pitch in [-90, 90].
    """
    places_K2 = landmarks_K2.astype(np.float64)
    linear_23 = (_FROM_HEAD_3K @ (places_K2 - places_K2.mean(0))).T
    left_22, _, right_23 = np.linalg.svd(linear_23, full_matrices=False)
    across_3, down_3 = left_22 @ right_23
    nose_3 = -np.array([across_3[2], down_3[2], np.cross(across_3, down_3)[2]])
    yaw = np.arctan2(nose_3[0], -nose_3[2])
    pitch = np.arcsin(np.clip(nose_3[1], -1.0, 1.0))
    roll = np.arctan2(down_3[0], across_3[0])
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))
