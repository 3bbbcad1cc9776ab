import json

import numpy as np
import pytest

from unmask.errors import Reason
from unmask.records import ErrorInfo, Faces, Frame, FrameCount, Status, Verdict, VideoScore


def test_a_frame_checks_its_shape_and_prints_no_pixels() -> None:
    assert repr(Frame(np.zeros((4, 6, 3), np.uint8), 0.5, 3)) == "Frame(6x4, pts_s=0.500, index=3, is_corrupt=False)"
    with pytest.raises(ValueError, match=r"\(4, 6\)"):
        Frame(np.zeros((4, 6), np.uint8), 0.5, 3)
    with pytest.raises(ValueError, match="float64"):
        Frame(np.zeros((4, 6, 3)), 0.5, 3)  # type: ignore[arg-type]


def test_faces_check_their_shapes() -> None:
    assert len(Faces.none()) == 0
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        Faces(np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros((3, 5, 2), np.float32))


def test_frames_are_all_accounted_for() -> None:
    FrameCount(5, 3, {Reason.NO_FACE: 2})
    with pytest.raises(ValueError, match="unaccounted"):
        FrameCount(5, 3, {Reason.NO_FACE: 1})


def test_no_score_is_never_a_verdict() -> None:
    why = ErrorInfo(Reason.NO_FACE, "No face.")
    VideoScore("a", "a.mp4", Status.UNSCORED, Verdict.INCONCLUSIVE, error=why)
    for verdict, error in [(Verdict.AUTHENTIC, why), (Verdict.INCONCLUSIVE, None)]:
        with pytest.raises(ValueError, match="without a score"):
            VideoScore("a", "a.mp4", Status.FAILED, verdict, error=error)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        VideoScore("a", "a.mp4", Status.SCORED, Verdict.AUTHENTIC, score=float("nan"))
    with pytest.raises(ValueError, match="has a score"):
        VideoScore("a", "a.mp4", Status.SCORED, Verdict.AUTHENTIC)


def test_json_has_the_documented_fields() -> None:
    score = VideoScore(
        "a", "a.mp4", Status.SCORED, Verdict.AUTHENTIC, score=0.25, frames=FrameCount(2, 1, {Reason.NO_FACE: 1})
    )
    plain = json.loads(json.dumps(score.to_json()))
    assert (
        list(plain)
        == (
            "id input status verdict score score_kind calibrated threshold model media faces frames timings_s warnings "
            "error"
        ).split()
    )
    assert plain["frames"] == {"received": 2, "scored": 1, "dropped": {"no_face": 1}}
