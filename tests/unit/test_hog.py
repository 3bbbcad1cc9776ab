"""dlib's detector behind MTCNN's interface; what needs dlib is skipped, visibly, where that is not installed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from typer.testing import CliRunner

from pipelines.config import DetectorOptions, Job
from pipelines.detect import Detector
from tests.clips import clip
from tests.portraits import filmed
from unmask.cli import app
from unmask.detectors import load_detector
from unmask.errors import ModelError, UsageError
from unmask.follow import Follower
from unmask.hog import HogDetector
from unmask.mtcnn import MTCNN

needs_dlib = pytest.mark.skipif(importlib.util.find_spec("dlib") is None, reason="dlib is not installed")
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("dlib") is None or importlib.util.find_spec("face_recognition_models") is None,
    reason="the weights of landmarks and encodings are not installed: pip install face_recognition_models",
)


def test_without_dlib_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs dlib, which is not installed: pip install unmask\[dlib\]\.$"):
        HogDetector()


@pytest.mark.parametrize("command", [["score", "x.mp4"], ["faces", "x.mp4", "--out", "out"]])
def test_the_commands_say_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "dlib" else find(name))
    result = CliRunner().invoke(app, [*command, "--detector", "hog"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "needs dlib, which is not installed: pip install unmask[dlib]" in " ".join(result.output.split())
    result = CliRunner().invoke(app, [*command, "--detector", "eyes"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "--detector is mtcnn or hog; got 'eyes'" in " ".join(result.output.split())


def test_detectors_are_loaded_by_name() -> None:
    detector = load_detector("mtcnn", thresholds=(0.5, 0.6, 0.7))
    assert isinstance(detector, MTCNN)
    assert detector.thresholds == (0.5, 0.6, 0.7)


@needs_dlib
def test_it_finds_the_face_that_mtcnn_finds() -> None:
    image_HWC = skimage.data.astronaut()
    (expected,) = MTCNN(device=torch.device("cpu")).search([image_HWC])
    found, nothing = HogDetector().search([image_HWC, skimage.data.coffee()])
    assert len(nothing) == 0
    assert len(found) == 1
    centre_2 = (found.boxes_N4[0, :2] + found.boxes_N4[0, 2:]) / 2
    x1, y1, x2, y2 = expected.boxes_N4[0]
    assert x1 < centre_2[0] < x2
    assert y1 < centre_2[1] < y2
    assert np.abs(found.landmarks_NK2[0] - expected.landmarks_NK2[0]).max() < 12
    (scaled,) = HogDetector().search([image_HWC], scale=0.5)
    assert np.abs(scaled.boxes_N4[0] - found.boxes_N4[0]).max() < 40


@needs_dlib
def test_weights_that_are_missing_or_damaged_are_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights file .*points\.dat: check the path"):
        HogDetector(tmp_path / "points.dat")
    (tmp_path / "bad.dat").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"bad\.dat holds no weights that dlib can read"):
        HogDetector(tmp_path / "bad.dat")
    with pytest.raises(UsageError, match="face encodings of dlib need its landmarks too"):
        HogDetector(None, tmp_path / "bad.dat")
    box_4 = np.array([0, 0, 50, 50], np.float32)
    with pytest.raises(UsageError, match=r"name the weights of landmarks: shape_predictor_68"):
        HogDetector().landmarks68(skimage.data.astronaut(), box_4)


@needs_dlib
def test_a_known_face_is_found_again_and_one_that_is_gone_has_probability_0() -> None:
    image_HWC = skimage.data.astronaut()
    detector = HogDetector()
    (found,) = detector.search([image_HWC])
    box_4 = found.boxes_N4[0]
    gone_4 = np.array([5, 380, 95, 470], np.float32)
    outside_4 = np.array([-300, -300, -200, -200], np.float32)
    (near,) = detector.refine([image_HWC], [np.stack([gone_4, box_4 + 12, outside_4])])
    assert np.abs(near.boxes_N4[1] - box_4).max() < 15  # HOG knows sizes by steps of a fifth
    assert near.probabilities_N[1] > 0.5
    assert near.probabilities_N[[0, 2]].tolist() == [0, 0]
    assert np.array_equal(near.boxes_N4[[0, 2]], np.stack([gone_4, outside_4]))
    assert np.abs(near.landmarks_NK2[1] - found.landmarks_NK2[0]).max() < 8
    assert len(detector.refine([image_HWC], [np.zeros((0, 4), np.float32)])[0]) == 0
    tensor = torch.from_numpy(image_HWC)
    assert np.array_equal(detector.search([tensor])[0].boxes_N4, found.boxes_N4)


@needs_dlib
def test_it_follows_a_face_as_mtcnn_does() -> None:
    """The middle of the followed box stays inside MTCNN's, frame by frame, between searches too."""
    follower, reference = Follower(HogDetector(), search_every_s=10), MTCNN()
    searched = []
    for n, image_HWC in enumerate(filmed(12)):
        faces = follower(image_HWC, n / 30)
        searched.append(follower.searched)
        assert len(faces) == 1
        (expected,) = reference.search([image_HWC])
        x, y = (faces.boxes_N4[0, :2] + faces.boxes_N4[0, 2:]) / 2
        x1, y1, x2, y2 = expected.boxes_N4[0]
        assert x1 < x < x2
        assert y1 < y < y2
    assert searched == [True] + 11 * [False]


@needs_dlib
def test_a_videos_faces_by_the_command(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip", frames=8, images=filmed(8), width=320, height=240)
    arguments = ["faces", str(path), "--out", str(tmp_path / "out"), "--frames", "4", "--detector", "hog"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    frames = json.loads((tmp_path / "out" / "faces.json").read_text())["frames"]
    assert [len(frame["faces"]) for frame in frames] == [1, 1, 1, 1]
    (face,) = frames[0]["faces"]
    found = HogDetector.installed()
    assert ("landmarks68" in face, "encoding" in face) == (found.has_landmarks, found.has_encodings)


@needs_dlib
def test_preprocessing_takes_it_by_name() -> None:
    detector = Detector(Job(detector=DetectorOptions(name="hog")), (), torch.device("cpu"))
    assert isinstance(detector._finder, HogDetector)


@needs_weights
def test_landmarks_and_encodings_of_the_published_weights() -> None:
    """68 points around the five of MTCNN; the same person mirrored is near, another person is far."""
    image_HWC = skimage.data.astronaut()
    detector = HogDetector.installed()
    (found,), (expected,) = detector.search([image_HWC]), MTCNN().search([image_HWC])
    points_P2 = detector.landmarks68(image_HWC, found.boxes_N4[0])
    assert points_P2.shape == (68, 2)
    assert np.abs(found.landmarks_NK2[0] - expected.landmarks_NK2[0]).max() < 8
    mirrored_HWC = np.ascontiguousarray(image_HWC[:, ::-1])
    (other,) = detector.search([mirrored_HWC])
    same = np.linalg.norm(
        detector.encoding(image_HWC, found.boxes_N4[0]) - detector.encoding(mirrored_HWC, other.boxes_N4[0])
    )
    assert same < 0.4
    nowhere = detector.encoding(image_HWC, np.array([200, 300, 300, 400], np.float32))
    assert np.linalg.norm(detector.encoding(image_HWC, found.boxes_N4[0]) - nowhere) > 0.6
