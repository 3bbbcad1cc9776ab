"""dlib's HOG face detector, 68 landmarks and face encodings (the extra `dlib`; S4), behind MTCNN's interface.

The detector's weights come with dlib. Those of the landmarks and encodings do not: they are published by dlib's author
as `shape_predictor_68_face_landmarks.dat` and `dlib_face_recognition_resnet_model_v1.dat`, and are named by path.

Axes: N faces, K = 5 landmarks, H rows, W columns, C = 3 channels in RGB order; boxes are x1, y1, x2, y2.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from unmask.errors import ModelError, Reason, UsageError
from unmask.mtcnn import MTCNN
from unmask.records import Faces

__all__ = ["HogDetector"]

# Of the 68 points in the order of iBUG: each eye's corners and lids, the nose's tip, the mouth's corners.
_FIVE = (range(36, 42), range(42, 48), (30,), (48,), (54,))
_ENCODING_DIM = 128


class HogDetector:
    """Finds frontal faces by histograms of oriented gradients; takes MTCNN's place in `search` and `refine`.

    Args:
        landmarks: The weights of 68 landmarks; without them the five that tables hold come from MTCNN's last network.
        encodings: The weights of face encodings, which need landmarks.
        upsample: How often a picture is doubled before it is searched; 1 finds faces from 40 pixels on.
        threshold: Least score.

    Raises:
        UsageError: dlib is not installed, or encodings are wanted without landmarks.
        ModelError: A weights file is missing or damaged.
    """

    def __init__(
        self,
        landmarks: Path | None = None,
        encodings: Path | None = None,
        *,
        upsample: int = 1,
        threshold: float = 0.0,
    ) -> None:
        if importlib.util.find_spec("dlib") is None:
            raise UsageError("the HOG detector needs dlib, which is not installed: pip install unmask[dlib]")
        if encodings is not None and landmarks is None:
            raise UsageError(
                "face encodings of dlib need its landmarks too: name shape_predictor_68_face_landmarks.dat"
            )
        self._dlib: Any = importlib.import_module("dlib")
        self._find = self._dlib.get_frontal_face_detector()
        self._points = None if landmarks is None else _loaded(self._dlib.shape_predictor, landmarks)
        self._encode = None if encodings is None else _loaded(self._dlib.face_recognition_model_v1, encodings)
        self._upsample, self._threshold = upsample, threshold
        self._mtcnn = MTCNN(device=torch.device("cpu")) if landmarks is None else None

    def search(self, images: Sequence[NDArray[np.uint8]], *, scale: float | Literal["auto"] = "auto") -> list[Faces]:
        """The faces of each image uint8 (H, W, C), most probable first.

        A probability is the logistic function of the detector's score, which is no calibrated one.

        Args:
            images: RGB, of any sizes.
            scale: Size of the copy that is searched; "auto" is the image itself, doubled `upsample` times.

        Raises:
            UsageError: The scale is not positive.
        """
        factor = 1.0 if scale == "auto" else scale
        if not factor > 0:
            raise UsageError(f"a scale is above 0; got {scale}")
        return [self._searched(np.ascontiguousarray(image), factor) for image in images]

    def refine(self, images: Sequence[NDArray[np.uint8]], boxes: Sequence[NDArray[np.float32]]) -> list[Faces]:
        """Landmarks of boxes (N, 4) that are known, which stay as they are."""
        return [self._refined(np.ascontiguousarray(i), b) for i, b in zip(images, boxes, strict=True)]

    def landmarks68(self, image_HWC: NDArray[np.uint8], box_4: NDArray[np.float32]) -> NDArray[np.float32]:
        """All 68 landmarks (68, 2) of one face, in pixels, in the order of iBUG.

        Raises:
            UsageError: The weights were not named.
        """
        shape = self._shape(np.ascontiguousarray(image_HWC), box_4)
        return np.array([[shape.part(n).x, shape.part(n).y] for n in range(68)], np.float32)

    def encoding(self, image_HWC: NDArray[np.uint8], box_4: NDArray[np.float32]) -> NDArray[np.float32]:
        """What tells one person from another, float32 (128,): below a distance of 0.6 it is one person.

        Raises:
            UsageError: The weights were not named.
        """
        if self._encode is None:
            raise UsageError("name the weights of encodings: dlib_face_recognition_resnet_model_v1.dat")
        image_HWC = np.ascontiguousarray(image_HWC)
        found = np.asarray(self._encode.compute_face_descriptor(image_HWC, self._shape(image_HWC, box_4)), np.float32)
        assert found.shape == (_ENCODING_DIM,)
        return found

    def _searched(self, image_HWC: NDArray[np.uint8], factor: float) -> Faces:
        copy = image_HWC if factor == 1 else cv2.resize(image_HWC, None, fx=factor, fy=factor)
        rectangles, scores, _ = self._find.run(copy, self._upsample, self._threshold)
        if not rectangles:
            return Faces.none()
        height, width = image_HWC.shape[:2]
        # dlib's right and bottom are the last pixels, ours are edges.
        corners = [(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles]
        boxes_N4 = np.clip(np.array(corners, np.float32) / factor, 0, [width, height, width, height]).astype(np.float32)
        order_N = np.argsort(-np.asarray(scores), kind="stable")
        found = self._refined(image_HWC, boxes_N4[order_N])
        probability_N = 1 / (1 + np.exp(-np.asarray(scores)[order_N]))
        return Faces(found.boxes_N4, probability_N.astype(np.float32), found.landmarks_NK2)

    def _refined(self, image_HWC: NDArray[np.uint8], boxes_N4: NDArray[np.float32]) -> Faces:
        if self._mtcnn is not None:
            found = self._mtcnn.refine([image_HWC], [boxes_N4])[0]
            return Faces(boxes_N4, found.probabilities_N, found.landmarks_NK2)
        points = [self._five(self.landmarks68(image_HWC, box_4)) for box_4 in boxes_N4]
        return Faces(
            boxes_N4, np.ones(len(boxes_N4), np.float32), np.array(points, np.float32).reshape(len(boxes_N4), 5, 2)
        )

    def _shape(self, image_HWC: NDArray[np.uint8], box_4: NDArray[np.float32]) -> Any:
        if self._points is None:
            raise UsageError("name the weights of landmarks: shape_predictor_68_face_landmarks.dat")
        x1, y1, x2, y2 = np.rint(box_4).astype(int).tolist()
        return self._points(image_HWC, self._dlib.rectangle(x1, y1, x2 - 1, y2 - 1))

    @staticmethod
    def _five(points_P2: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.array([points_P2[list(which)].mean(0) for which in _FIVE], np.float32)


def _loaded(kind: Any, path: Path) -> Any:
    if not path.is_file():
        raise ModelError(Reason.MISSING_FILE, f"no weights file {path}: check the path")
    try:
        return kind(str(path))
    except RuntimeError as error:
        raise ModelError(
            Reason.CHECKPOINT_CORRUPT, f"{path} holds no weights that dlib can read: fetch it again"
        ) from error
