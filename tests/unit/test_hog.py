"""dlib's detector behind MTCNN's interface; what needs dlib is skipped, visibly, where that is not installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from unmask.errors import ModelError, UsageError
from unmask.hog import HogDetector

needs_dlib = pytest.mark.skipif(importlib.util.find_spec("dlib") is None, reason="dlib is not installed")


def test_without_dlib_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs dlib, which is not installed: pip install unmask\[dlib\]\.$"):
        HogDetector()


@needs_dlib
def test_it_finds_the_face_that_mtcnn_finds() -> None:
    import torch

    from unmask.mtcnn import MTCNN

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
