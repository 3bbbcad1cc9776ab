"""Search mode equals facenet-pytorch, whatever the sizes and the batch; refine follows boxes."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unmask import mtcnn_nets
from unmask.detection import detection_scale, scale_for_smallest_face
from unmask.errors import ModelError, Reason, UsageError
from unmask.mtcnn import MTCNN
from unmask.records import Faces

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from facenet_pytorch import MTCNN as Peer
    from skimage.data import astronaut

Image = NDArray[np.uint8]


@pytest.fixture(scope="module")
def detector() -> MTCNN:
    return MTCNN()


@pytest.fixture(scope="module")
def peer() -> Any:
    return Peer(keep_all=True)


def crowd(height: int, width: int, places: list[tuple[int, int, float, float]]) -> Image:
    """Astronauts, each at (x, y), of a size and turned by an angle, on a grey canvas with a gradient."""
    canvas = np.broadcast_to(np.linspace(60, 160, width, dtype=np.uint8)[None, :, None], (height, width, 3)).copy()
    portrait = astronaut()[:400, 50:400]
    for x, y, size, angle in places:
        turn = cv2.getRotationMatrix2D((175, 200), angle, size)
        turn[:, 2] += (x, y)
        inside = cv2.warpAffine(np.full(portrait.shape[:2], 255, np.uint8), turn, (width, height)) > 250
        canvas[inside] = cv2.warpAffine(portrait, turn, (width, height), flags=cv2.INTER_AREA)[inside]
    return canvas


PICTURES = {
    "portrait": astronaut(),
    "odd": cv2.resize(astronaut(), (301, 277), interpolation=cv2.INTER_AREA),
    "crowd": crowd(480, 853, [(-60, -80, 0.6, 0), (200, 20, 0.5, 12), (500, 60, 0.9, -8)]),
    "tall": crowd(701, 420, [(0, -40, 0.8, 5), (120, 300, 0.7, -15)]),
    "cut off": np.ascontiguousarray(astronaut()[60:300, 190:330]),
    "half": np.ascontiguousarray(astronaut()[:200, 230:420]),
}


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner))


def peer_faces(peer: Any, image: Image) -> Faces:
    boxes, probabilities, landmarks = peer.detect(image, landmarks=True)
    if boxes is None:
        return Faces.none()
    order = np.argsort(-probabilities.astype(np.float32), kind="stable")
    return Faces(*(np.asarray(part, np.float32)[order] for part in (boxes, probabilities, landmarks)))


def assert_same(ours: Faces, theirs: Faces) -> None:
    assert len(ours) == len(theirs)
    assert (np.diff(ours.probabilities_N) <= 0).all()
    for i, box in enumerate(theirs.boxes_N4):
        j = int(np.argmax([iou(other, box) for other in ours.boxes_N4]))
        assert iou(ours.boxes_N4[j], box) >= 0.99
        assert np.abs(ours.landmarks_NK2[j] - theirs.landmarks_NK2[i]).max() <= 0.5
        assert abs(ours.probabilities_N[j] - theirs.probabilities_N[i]) <= 1e-3


@pytest.mark.parametrize("name", PICTURES)
def test_search_equals_facenet(detector: MTCNN, peer: Any, name: str) -> None:
    theirs = peer_faces(peer, PICTURES[name])
    assert len(theirs) >= {"crowd": 3, "tall": 2}.get(name, 0)
    assert_same(detector.search([PICTURES[name]], scale=1.0)[0], theirs)


def test_the_portrait_has_one_face_in_the_right_place(detector: MTCNN) -> None:
    faces = detector.search([astronaut()], scale=1.0)[0]
    assert len(faces) == 1
    assert faces.probabilities_N[0] > 0.99
    left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks_NK2[0]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]


def test_search_equals_facenet_on_an_equal_batch(detector: MTCNN, peer: Any) -> None:
    images = np.stack([PICTURES["crowd"], PICTURES["crowd"][:, ::-1], np.zeros_like(PICTURES["crowd"])])
    boxes, probabilities, landmarks = peer.detect(images, landmarks=True)
    ours = detector.search(torch.from_numpy(images), scale=1.0)
    for i in range(2):
        parts = (np.asarray(part[i], np.float32) for part in (boxes, probabilities, landmarks))
        assert_same(ours[i], Faces(*parts))
    assert boxes[2] is None
    assert len(ours[2]) == 0


def test_other_thresholds_and_smallest_faces_equal_facenet() -> None:
    ours = MTCNN(thresholds=(0.7, 0.8, 0.9), min_face_px=40, factor=0.6)
    theirs = Peer(keep_all=True, thresholds=[0.7, 0.8, 0.9], min_face_size=40, factor=0.6)
    assert_same(ours.search([PICTURES["crowd"]], scale=1.0)[0], peer_faces(theirs, PICTURES["crowd"]))


@pytest.mark.parametrize("pixels", [0, 10**9])
def test_a_batch_of_mixed_sizes_equals_singles(detector: MTCNN, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    # With many pixels at once the images share the cascade's steps, as they do on a GPU.
    images = [*PICTURES.values(), np.zeros((16, 16, 3), np.uint8), PICTURES["crowd"][:, ::-1].copy()]
    singles = [detector.search([image], scale=1.0)[0] for image in images]
    monkeypatch.setattr("unmask.mtcnn._SEARCH_PX", {"cpu": pixels})
    for together, single in zip(detector.search(images, scale=1.0), singles, strict=True):
        assert len(together) == len(single)
        np.testing.assert_allclose(together.boxes_N4, single.boxes_N4, atol=1e-2)
        np.testing.assert_allclose(together.landmarks_NK2, single.landmarks_NK2, atol=1e-2)
        np.testing.assert_allclose(together.probabilities_N, single.probabilities_N, atol=1e-5)


def test_search_is_deterministic(detector: MTCNN) -> None:
    first, second = (detector.search([PICTURES["crowd"]])[0] for _ in range(2))
    assert np.array_equal(first.boxes_N4, second.boxes_N4)
    assert np.array_equal(first.landmarks_NK2, second.landmarks_NK2)


@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.7, 2.0])
def test_scaled_search_gives_coordinates_of_the_image(detector: MTCNN, peer: Any, scale: float) -> None:
    image = crowd(720, 1080, [(0, 0, 1.6, 0), (560, 40, 1.2, 10)])
    copy = detector.scaled_copy(image, scale=scale).numpy()
    assert copy.shape == (round(720 * scale), round(1080 * scale), 3)
    theirs = peer_faces(peer, copy)
    assert len(theirs) >= 2
    ratio = np.array([1080 / copy.shape[1], 720 / copy.shape[0]], np.float32)
    ours = detector.search([image], scale=scale)[0]
    shrunk = Faces(ours.boxes_N4 / np.tile(ratio, 2), ours.probabilities_N, ours.landmarks_NK2 / ratio)
    assert_same(shrunk, theirs)


@pytest.mark.parametrize("shape", [(1, 1), (11, 400), (12, 12), (16, 16), (20, 20), (21, 37), (64, 1)])
def test_tiny_images_have_no_faces_and_do_no_harm(detector: MTCNN, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert [len(faces) for faces in detector.search([noise, np.zeros_like(noise)], scale=1.0)] == [0, 0]


def test_nothing_to_search(detector: MTCNN) -> None:
    assert detector.search([]) == []
    assert detector.refine([], []) == []


def test_read_only_and_strided_images(detector: MTCNN) -> None:
    locked = astronaut().copy()
    locked.setflags(write=False)
    mirrored = astronaut()[:, ::-1]
    assert [len(faces) for faces in detector.search([locked, mirrored])] == [1, 1]


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(299, 200, 2), (300, 300, 1), (1000, 20, 1), (720, 1280, 0.5), (1900, 9, 0.5), (1080, 1920, 1 / 3)],
)
def test_detection_scale(width: int, height: int, scale: float) -> None:
    assert detection_scale(width, height) == scale


def test_scale_for_smallest_face(detector: MTCNN) -> None:
    assert scale_for_smallest_face(60) == pytest.approx(1 / 3)
    assert scale_for_smallest_face(5) == 2.0
    assert len(detector.search([astronaut()], scale=scale_for_smallest_face(60))[0]) == 1
    assert len(detector.search([astronaut()], scale=scale_for_smallest_face(200))[0]) == 0
    with pytest.raises(UsageError, match="larger than 0"):
        scale_for_smallest_face(0)


def test_refine_brings_moved_boxes_back(detector: MTCNN) -> None:
    image = PICTURES["crowd"]
    found = detector.search([image], scale=1.0)[0]
    width_N1 = (found.boxes_N4[:, 2:] - found.boxes_N4[:, :2])[:, :1]
    refined, empty, single = detector.refine(
        [image, image, astronaut()],
        [found.boxes_N4 + 0.08 * width_N1, np.zeros((0, 4), np.float32), detector.search([astronaut()])[0].boxes_N4],
    )
    assert (len(refined), len(empty), len(single)) == (3, 0, 1)
    assert (refined.probabilities_N > 0.9).all()
    assert all(iou(a, b) > 0.85 for a, b in zip(refined.boxes_N4, found.boxes_N4, strict=True))
    assert np.abs(refined.landmarks_NK2 - found.landmarks_NK2).max() < 0.08 * width_N1.max()


def test_refine_judges_boxes_without_a_face(detector: MTCNN) -> None:
    boxes = np.array([[10, 400, 60, 450], [5000, 5000, 5100, 5100], [-90, -90, -10, -10]], np.float32)
    faces = detector.refine([astronaut()], [boxes])[0]
    assert (faces.probabilities_N < 0.5).all()
    assert np.array_equal(faces.boxes_N4[1:], boxes[1:])


def test_half_precision_finds_the_same_faces(detector: MTCNN) -> None:
    halves, singles = (one.search([PICTURES["odd"]], scale=1.0)[0] for one in (MTCNN(half=True), detector))
    assert len(halves) == len(singles) == 1
    assert iou(halves.boxes_N4[0], singles.boxes_N4[0]) > 0.9


@pytest.mark.parametrize(
    "options",
    [{"thresholds": (0.6, 0.7)}, {"thresholds": (0.6, 0.7, 1.5)}, {"min_face_px": 0}, {"factor": 1.0}],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        MTCNN(**options)


@pytest.mark.parametrize("device", ["nonsense", "meta"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(UsageError) as caught:
        MTCNN(device=device)
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE


@pytest.mark.parametrize("image", [np.zeros((5, 5)), np.zeros((0, 9, 3), np.uint8), np.zeros((9, 9, 4), np.uint8)])
def test_what_is_not_an_image(detector: MTCNN, image: Any) -> None:
    with pytest.raises(UsageError, match=r"\(H, W, 3\)"):
        detector.search([image])


def test_bad_scale(detector: MTCNN) -> None:
    with pytest.raises(UsageError, match="above 0"):
        detector.search([astronaut()], scale=0.0)


def test_absent_weights_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="pip install") as caught:
        mtcnn_nets.load_weights("pnet")
    assert caught.value.reason is Reason.PRETRAINED_UNAVAILABLE


@pytest.mark.parametrize("clip", ["samples/lynaeydofd.mp4", "ffpp/original_sequences/youtube/c23/videos/634.mp4"])
def test_search_equals_facenet_on_real_clips(shared_dir: Path, detector: MTCNN, peer: Any, clip: str) -> None:
    with av.open(str(shared_dir / "videos" / clip)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in (0, 40):
                copy = detector.scaled_copy(frame.to_ndarray(format="rgb24")).numpy()
                assert_same(detector.search([copy], scale=1.0)[0], peer_faces(peer, copy))
            if index == 40:
                break
