"""dlib's HOG face detector, 68 landmarks and face encodings (the extra `dlib`; S4), behind MTCNN's interface.

The detector's weights come with dlib. Those of the landmarks and encodings do not: dlib's author publishes them as
`shape_predictor_68_face_landmarks.dat` and `dlib_face_recognition_resnet_model_v1.dat`. They are named by path, or
taken from the package `face_recognition_models` where that is installed.

Axes: N faces, K = 5 landmarks, H rows, W columns, C = 3 channels in RGB order; boxes are x1, y1, x2, y2.
"""

import hashlib
import importlib
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from unmask.detection import Images
from unmask.devices import select_device
from unmask.errors import ModelError, Reason, UsageError
from unmask.mtcnn import MTCNN
from unmask.records import Faces

__all__ = ["HogDetector", "installed_weights"]

# Of the 68 points in the order of iBUG: each eye's corners and lids, the nose's tip, the mouth's corners.
_FIVE = (range(36, 42), range(42, 48), (30,), (48,), (54,))
_ENCODING_DIM = 128
# Larger pictures are searched in a copy of this size.
_LARGEST_PX = 1000
_WINDOW_PX = 80.0
# A known face is looked for at about this size, in twice its box.
_KNOWN_PX, _AROUND, _LEAST_IOU = 110.0, 2.0, 0.3
_PACKAGE, _FILES = "face_recognition_models", (
    "shape_predictor_68_face_landmarks.dat",
    "dlib_face_recognition_resnet_model_v1.dat",
)  # fmt: skip


class HogDetector:
    """Finds frontal faces by histograms of oriented gradients; takes MTCNN's place.

    Args:
        landmarks: The weights of 68 landmarks; without them the five that tables hold come from MTCNN's last network.
        encodings: The weights of face encodings, which need landmarks.
        device: Of that last network, and of the model beside it; dlib runs on the CPU.
        upsample: How often a picture is doubled before it is searched; 1 finds faces from 40 pixels on.
        threshold: Least score; dlib's own 0 also finds folds of clothes.

    Raises:
        UsageError: dlib is not installed, or encodings are wanted without landmarks.
        ModelError: A weights file is missing or damaged.
    """

    def __init__(
        self,
        landmarks: Path | None = None,
        encodings: Path | None = None,
        *,
        device: torch.device | str = "cpu",
        upsample: int = 1,
        threshold: float = 0.2,
    ) -> None:
        _needed()
        if encodings is not None and landmarks is None:
            raise UsageError(f"face encodings of dlib need its landmarks too: name {_FILES[0]}")
        self._dlib: Any = importlib.import_module("dlib")
        self._find = self._dlib.get_frontal_face_detector()
        self._points = None if landmarks is None else _loaded(self._dlib.shape_predictor, landmarks)
        self._encode = None if encodings is None else _loaded(self._dlib.face_recognition_model_v1, encodings)
        self._lock = threading.Lock()  # dlib's objects keep what they work on
        self._upsample, self._threshold = upsample, threshold
        self.device, self.min_face_px = select_device(device), _WINDOW_PX / 2**upsample
        self._mtcnn = MTCNN(device=self.device) if landmarks is None else None

    @classmethod
    def installed(cls, *, device: torch.device | str = "cpu") -> "HogDetector":
        """With the landmarks and encodings of `face_recognition_models`, where that package is installed."""
        return cls(*_installed(), device=device)

    @property
    def has_landmarks(self) -> bool:
        """Whether `landmarks68` can be asked."""
        return self._points is not None

    @property
    def has_encodings(self) -> bool:
        """Whether `encoding` can be asked."""
        return self._encode is not None

    def search(self, images: Images, *, scale: float | Literal["auto"] = "auto") -> list[Faces]:
        """The faces of each image uint8 (H, W, C), most probable first.

        A probability is the logistic function of the detector's score, which is no calibrated one.

        Args:
            images: RGB, of any sizes.
            scale: Size of the copy that is searched, which is doubled `upsample` times; "auto" is the image itself, or
                a copy whose longer side has 1000 pixels.

        Raises:
            UsageError: The scale is not positive.
        """
        if scale != "auto" and not scale > 0:
            raise UsageError(f"a scale is above 0; got {scale}")
        return [self._searched(image, scale) for image in _arrays(images)]

    def refine(self, images: Images, boxes: Sequence[NDArray[np.float32]]) -> list[Faces]:
        """The faces near boxes (N, 4) that are nearly known; a box that none overlaps stays, with probability 0."""
        return [
            self._described(image, *self._near(image, np.asarray(known, np.float32).reshape(-1, 4)))
            for image, known in zip(_arrays(images), boxes, strict=True)
        ]

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
            raise UsageError(f"name the weights of encodings: {_FILES[1]}")
        image_HWC = np.ascontiguousarray(image_HWC)
        shape = self._shape(image_HWC, box_4)
        with self._lock:
            found = np.asarray(self._encode.compute_face_descriptor(image_HWC, shape), np.float32)
        assert found.shape == (_ENCODING_DIM,)
        return found

    def _searched(self, image_HWC: NDArray[np.uint8], scale: float | Literal["auto"]) -> Faces:
        factor = min(1.0, _LARGEST_PX / max(image_HWC.shape[:2])) if scale == "auto" else scale
        boxes_N4, scores_N = self._detected(image_HWC, factor, self._upsample)
        order_N = np.argsort(-scores_N, kind="stable")
        return self._described(image_HWC, boxes_N4[order_N], _probability(scores_N[order_N]))

    def _near(self, image_HWC: NDArray[np.uint8], known_N4: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """For each known box the detection that overlaps it most, and its probability."""
        boxes_N4, probability_N = known_N4.copy(), np.zeros(len(known_N4), np.float32)
        height, width = image_HWC.shape[:2]
        for n, box_4 in enumerate(known_N4):
            side = max(float((box_4[2:] - box_4[:2]).max()), 1.0)
            centre_2 = (box_4[:2] + box_4[2:]) / 2
            x1, y1 = np.clip(np.floor(centre_2 - _AROUND / 2 * side), 0, [width, height]).astype(int)
            x2, y2 = np.clip(np.ceil(centre_2 + _AROUND / 2 * side), 0, [width, height]).astype(int)
            if x2 - x1 < 2 or y2 - y1 < 2:
                continue
            found_N4, scores_N = self._detected(image_HWC[y1:y2, x1:x2], _KNOWN_PX / side, 0)
            found_N4 = found_N4 + np.array([x1, y1, x1, y1], np.float32)
            overlap_N = np.array([_iou(box_4, each) for each in found_N4])
            if len(overlap_N) and overlap_N.max() >= _LEAST_IOU:
                best = int(overlap_N.argmax())
                boxes_N4[n], probability_N[n] = found_N4[best], _probability(scores_N[best])
        return boxes_N4, probability_N

    def _detected(
        self, image_HWC: NDArray[np.uint8], factor: float, upsample: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Boxes (N, 4) in pixels of the image, and scores (N,), by a copy of another size."""
        height, width = image_HWC.shape[:2]
        size = (max(round(width * factor), 1), max(round(height * factor), 1))
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        copy = image_HWC if size == (width, height) else cv2.resize(image_HWC, size, interpolation=method)
        with self._lock:
            rectangles, scores, _ = self._find.run(np.ascontiguousarray(copy), upsample, self._threshold)
        # dlib's right and bottom are the last pixels, ours are edges.
        corners = [(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles]
        boxes_N4 = np.array(corners, np.float32).reshape(-1, 4) * np.array([width / size[0], height / size[1]] * 2)
        return np.clip(boxes_N4, 0, [width, height, width, height]).astype(np.float32), np.asarray(scores, np.float64)

    def _described(
        self, image_HWC: NDArray[np.uint8], boxes_N4: NDArray[np.float32], probability_N: NDArray[np.float32]
    ) -> Faces:
        """Boxes with their five landmarks."""
        if not len(boxes_N4):
            return Faces.none()
        if self._mtcnn is not None:
            points_NK2 = self._mtcnn.refine([image_HWC], [boxes_N4])[0].landmarks_NK2
        else:
            points_NK2 = np.stack([_five(self.landmarks68(image_HWC, box_4)) for box_4 in boxes_N4])
        return Faces(boxes_N4, probability_N, points_NK2)

    def _shape(self, image_HWC: NDArray[np.uint8], box_4: NDArray[np.float32]) -> Any:
        if self._points is None:
            raise UsageError(f"name the weights of landmarks: {_FILES[0]}")
        x1, y1, x2, y2 = np.rint(box_4).astype(int).tolist()
        return self._points(image_HWC, self._dlib.rectangle(x1, y1, x2 - 1, y2 - 1))


def _arrays(images: Images) -> Iterator[NDArray[np.uint8]]:
    for image in images:
        array = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
            raise UsageError(f"an image is uint8 of shape (H, W, 3); got {array.dtype} {array.shape}")
        yield np.ascontiguousarray(array)


def _probability(scores: Any) -> Any:
    return (1 / (1 + np.exp(-np.asarray(scores, np.float64)))).astype(np.float32)


def _iou(a_4: NDArray[np.float32], b_4: NDArray[np.float32]) -> float:
    sides_2 = np.clip(np.minimum(a_4[2:], b_4[2:]) - np.maximum(a_4[:2], b_4[:2]), 0, None)
    shared = float(sides_2.prod())
    return shared / max(float((a_4[2:] - a_4[:2]).prod() + (b_4[2:] - b_4[:2]).prod()) - shared, 1e-6)


def _five(points_P2: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.array([points_P2[list(which)].mean(0) for which in _FIVE], np.float32)


def _installed() -> tuple[Path | None, Path | None]:
    """The weights of `face_recognition_models`, which is not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in list(spec.submodule_search_locations or []) if spec is not None else []:
        landmarks, encodings = (Path(folder) / "models" / name for name in _FILES)
        if landmarks.is_file():
            return landmarks, encodings if encodings.is_file() else None
    return None, None


def _needed() -> None:
    if importlib.util.find_spec("dlib") is None:
        raise UsageError("the HOG detector needs dlib, which is not installed: pip install unmask[dlib]")


def installed_weights() -> list[str]:
    """What shapes the faces that `HogDetector.installed` finds: dlib's version, and a digest of its landmarks.

    Raises:
        UsageError: dlib is not installed.
    """
    _needed()
    landmarks, _ = _installed()
    version: str = importlib.import_module("dlib").__version__
    return [version, "" if landmarks is None else hashlib.sha256(landmarks.read_bytes()).hexdigest()]


def _loaded(kind: Any, path: Path) -> Any:
    if not path.is_file():
        raise ModelError(Reason.MISSING_FILE, f"no weights file {path}: check the path")
    try:
        return kind(str(path))
    except RuntimeError as error:
        raise ModelError(
            Reason.CHECKPOINT_CORRUPT, f"{path} holds no weights that dlib can read: fetch it again"
        ) from error
