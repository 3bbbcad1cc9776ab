from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests import clips
from tests.portraits import filmed
from unmask.analysis import Analyzer
from unmask.devices import select_device
from unmask.errors import Reason, UsageError
from unmask.faces import crop
from unmask.inputs import Source
from unmask.plan import Sampling
from unmask.records import Frame, Status
from unmask.scoring import ScoringOptions
from unmask.transforms import to_tensor
from unmask.video import VideoReader

FRAMES = 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.clip(tmp_path_factory.mktemp("clip") / "clip", images=filmed(FRAMES), width=320, height=240)


@pytest.fixture(scope="module")
def temporal() -> Analyzer:
    return Analyzer.load("mobilenetv3-small-temporal", device="cpu")


def test_windows_equal_the_clip_computation(temporal: Analyzer, clip: Path) -> None:
    """What is pushed frame by frame gives what a temporal model says of each clip of 16 frames."""
    sampling = Sampling(every=1)
    analysis = temporal.analyze(Source(str(clip)), sampling, evidence=True)
    (track,) = analysis.tracks
    assert len(track.scores_W) == FRAMES
    model, preprocessing = temporal.model, temporal.description.preprocessing
    with VideoReader(clip) as reader, torch.inference_mode():
        images = [f.image_HWC for f in reader.frames(sampling) if isinstance(f, Frame)]
        crops = []
        from unmask.follow import Follower

        follower = Follower(temporal.detector)
        for k, image in enumerate(images):
            faces = follower(image, k / 25)
            crops.append(crop(image, faces.boxes_N4[0], faces.landmarks_NK2[0], preprocessing))
        features_TD = model.features(to_tensor(crops, preprocessing))
        length = model.config.window
        for t, score in enumerate(track.scores_W):
            window = features_TD[max(0, t + 1 - length) : t + 1]
            logit = model.clip_logits(window[None], torch.ones(1, len(window), dtype=torch.bool))
            assert float(torch.sigmoid(logit)) == pytest.approx(float(score), abs=1e-5)


def test_evidence_is_kept_only_if_wanted(temporal: Analyzer, clip: Path) -> None:
    analysis = temporal.analyze(Source(str(clip)), Sampling(frames=4))
    assert analysis.tracks == ()
    assert analysis.score.status is Status.SCORED
    assert analysis.report_entry().score is analysis.score


def test_progress_rises_and_ends_before_one(temporal: Analyzer, clip: Path) -> None:
    shares: list[float] = []
    temporal.analyze(Source(str(clip)), Sampling(frames=8), progress=shares.append)
    assert len(shares) == 8
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] < 1


def test_small_faces_are_counted_and_not_scored(temporal: Analyzer, clip: Path) -> None:
    strict = Analyzer(temporal.model, temporal.description, temporal.detector, options=ScoringOptions(min_face_px=150))
    score = strict.analyze(Source(str(clip)), Sampling(frames=4)).score
    assert score.frames.dropped == {Reason.FACE_TOO_SMALL: 4}
    assert score.error is not None
    assert score.error.code is Reason.NO_USABLE_FACE


def test_a_face_that_is_too_small_for_a_while_leaves_a_gap(temporal: Analyzer, tmp_path: Path) -> None:
    """The camera moves away and comes back: no window and no segment spans the time in between."""
    near = list(filmed(36))
    far = [cv2.resize(image, (160, 120)) for image in near[12:24]]
    small = [cv2.copyMakeBorder(image, 60, 60, 80, 80, cv2.BORDER_REPLICATE) for image in far]
    images = [*near[:12], *small, *near[24:]]
    path = clips.clip(tmp_path / "zoom", images=images, width=320, height=240)
    options = ScoringOptions(min_face_px=50)
    analyzer = Analyzer(temporal.model, temporal.description, temporal.detector, options=options)
    analysis = analyzer.analyze(Source(str(path)), Sampling(every=1), evidence=True)
    assert analysis.score.frames.dropped[Reason.FACE_TOO_SMALL] >= 10
    for face in analysis.score.faces:
        for segment in face.segments:
            assert segment.end_s <= 12.5 / 25 or segment.start_s >= 23.5 / 25


def test_our_own_faults_harm_one_video_only(temporal: Analyzer, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> torch.Tensor:
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patch:
        patch.setattr(temporal.model, "features", fail)
        score = temporal.analyze(Source(str(clip)), Sampling(frames=4)).score
    assert score.status is Status.FAILED
    assert score.error is not None
    assert score.error.code is Reason.INTERNAL
    assert "out of memory" in score.error.message
    assert temporal.analyze(Source(str(clip)), Sampling(frames=4)).score.status is Status.SCORED


def test_a_fault_before_the_backbone_keeps_the_account(
    temporal: Analyzer, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no crop")

    monkeypatch.setattr("unmask.analysis.crop", fail)
    score = temporal.analyze(Source(str(clip)), Sampling(frames=4)).score
    assert score.error is not None
    assert score.error.code is Reason.INTERNAL
    assert score.frames.received == score.frames.scored + sum(score.frames.dropped.values())


def test_devices() -> None:
    assert select_device("cpu").type == "cpu"
    assert not torch.backends.cudnn.allow_tf32
    assert select_device("auto").type in {"cpu", "cuda"}
    for name in ("toaster", "meta", "cuda:99"):
        with pytest.raises(UsageError, match=name) as caught:
            select_device(name)
        assert caught.value.reason is Reason.DEVICE_UNAVAILABLE


def test_all_cores_give_what_one_gives(temporal: Analyzer, clip: Path) -> None:
    """Scores do not depend on how frames are shared out among threads."""
    alone = Analyzer(temporal.model, temporal.description, temporal.detector)
    alone.workers = type(alone.workers)(torch.device("meta"))
    together = temporal.analyze(Source(str(clip)), Sampling(frames=9), evidence=True)
    single = alone.analyze(Source(str(clip)), Sampling(frames=9), evidence=True)
    np.testing.assert_allclose(single.tracks[0].scores_W, together.tracks[0].scores_W, atol=1e-6)
