import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from unmask.calibration import Calibration
from unmask.checkpoints import Description
from unmask.errors import MediaError, Reason
from unmask.models import ForgeryModel, Head, ModelConfig
from unmask.records import Faces, Status, Verdict, VideoInfo, VideoScore
from unmask.scoring import ScoringOptions
from unmask.tally import Awaited, Subject, Tally, usable_rows
from unmask.tracks import Sighting, TrackedFrame, Tracker, reason_not_to_look
from unmask.transforms import Preprocessing

DIM, WINDOW = 6, 4
SUBJECT = Subject(input="a.mp4")


def tally(head: Head = "frame", **options: object) -> Tally:
    """Of a head without a backbone: a backbone is not needed."""
    config = ModelConfig(backbone="none", head=head, window=WINDOW)
    torch.manual_seed(0)
    model = ForgeryModel(config, nn.Identity(), DIM).eval()
    for parameter in model.head.parameters():
        parameter.data *= 3  # so that scores differ by more than rounding
    described = Description(
        name="head",
        version="1",
        config=config,
        preprocessing=Preprocessing(size_px=32),
        calibration=Calibration(temperature=0.7, bias=0.1, fitted=True, band=(0.45, 0.55)),
        trained=True,
    )
    return Tally(model, described, ScoringOptions(**options))  # type: ignore[arg-type]


def faces(*sides: float) -> Faces:
    """Faces side by side, of these sizes."""
    boxes = [[200 * k, 0, 200 * k + side, side] for k, side in enumerate(sides)]
    n = len(sides)
    return Faces(np.array(boxes, np.float32).reshape(n, 4), np.ones(n, np.float32), np.zeros((n, 5, 2), np.float32))


def frames(*seen: Faces | Reason, step_s: float = 0.04) -> list[TrackedFrame]:
    tracker = Tracker()
    return [tracker.track(k * step_s, k, item) for k, item in enumerate(seen)]


def features(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def scored(judge: Tally, seen: Sequence[TrackedFrame], features_ND: torch.Tensor, *, at_once: int) -> VideoScore:
    awaited = [face for frame in seen for face in judge.add(frame)]
    assert len(awaited) == len(features_ND)
    for start in range(0, len(awaited), at_once):
        judge.score(awaited[start : start + at_once], features_ND[start : start + at_once])
    return judge.conclude(SUBJECT)


# --- what tracking gives to it --------------------------------------------------------------------------------------


def test_a_tracker_answers_for_every_frame_whatever_became_of_it() -> None:
    whole, damaged, empty, again = frames(faces(100), Reason.CORRUPT_FRAME, faces(), faces(100))
    assert whole.sightings == [Sighting(1, after_gap=True)]
    assert (damaged.reason, len(damaged.faces), len(damaged.sightings)) == (Reason.CORRUPT_FRAME, 0, 0)
    assert empty.reason is Reason.NO_FACE
    assert again.reason is None
    assert again.sightings == [Sighting(1, after_gap=True)]


def test_a_cut_starts_a_new_track() -> None:
    tracker = Tracker()
    first, second = tracker.track(0.0, 0, faces(100)), tracker.track(0.04, 1, faces(100), cut=True)
    assert [f.sightings[0].track_id for f in (first, second)] == [1, 2]


def test_a_frame_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="1 faces, 0 sightings"):
        TrackedFrame(0.0, 0, faces(100), [], None)
    with pytest.raises(ValueError, match="reason None"):
        TrackedFrame(0.0, 0, faces(), [], None)


@pytest.mark.parametrize(
    ("height", "width", "is_corrupt", "reason"),
    [
        (480, 640, False, None),
        (480, 640, True, Reason.CORRUPT_FRAME),
        (19, 640, False, Reason.FRAME_TOO_SMALL),
        (640, 19, False, Reason.FRAME_TOO_SMALL),
        (20, 20, False, None),
        (8, 8, True, Reason.CORRUPT_FRAME),
    ],
)
def test_which_frames_are_not_looked_at(height: int, width: int, is_corrupt: bool, reason: Reason | None) -> None:
    assert reason_not_to_look(height, width, is_corrupt=is_corrupt) is reason


# --- frames and features in -----------------------------------------------------------------------------------------


def test_only_large_faces_are_awaited() -> None:
    assert usable_rows(faces(31.9, 32, 10, 80), ScoringOptions()) == [1, 3]
    assert usable_rows(faces(), ScoringOptions()) == []
    (frame,) = frames(faces(31.9, 32, 10, 80))
    assert [(face.row, face.track_id) for face in tally().add(frame)] == [(1, 2), (3, 4)]


def test_what_follows_what_was_not_scored_comes_after_a_gap() -> None:
    judge = tally(min_face_px=60)
    sides = [50, 70, 70, 50, 70, 70]
    seen = [*frames(*(faces(side) for side in sides), Reason.DECODE_FAILED, faces(70), faces(70))]
    awaited = [face for frame in seen for face in judge.add(frame)]
    assert [(round(f.pts_s / 0.04), f.after_gap) for f in awaited] == [
        (1, True), (2, False), (4, True), (5, False), (7, True), (8, False)
    ]  # fmt: skip


def test_two_frames_at_one_time_do_not_make_a_window_longer() -> None:
    judge = tally("temporal")
    same = frames(faces(100), faces(100), faces(100), step_s=0.0)
    awaited = [face for frame in same for face in judge.add(frame)]
    assert [face.after_gap for face in awaited] == [True, True, True]
    judge.score(awaited, features(3))
    assert judge.tracks[1].scores.window_lengths == [1, 1, 1]


@pytest.mark.parametrize("head", ["frame", "l2", "temporal"])
def test_how_many_are_scored_at_a_time_makes_no_difference(head: Head) -> None:
    seen = frames(*[faces(100, 90)] * 5, Reason.CORRUPT_FRAME, faces(), *[faces(100, 90)] * 6)
    features_ND = features(22)
    results = [scored(tally(head), seen, features_ND, at_once=n) for n in (1, 3, 22)]
    for one, other in itertools.pairwise(results):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert [f.track_id for f in one.faces] == [f.track_id for f in other.faces]
        for a, b in zip(one.faces, other.faces, strict=True):
            assert (a.score, a.uncertainty) == pytest.approx((b.score, b.uncertainty), abs=1e-6)
    assert results[0].faces[0].uncertainty > 0.01  # the scores differ at all


@torch.inference_mode()
def window_scores(judge: Tally, features_ND: torch.Tensor, segments: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """By the definition: the scores of all windows of one track that consists of segments without gaps."""
    logits = []
    for segment in segments:
        for end in range(1, len(segment) + 1):
            window = features_ND[list(segment[max(0, end - WINDOW) : end])]
            valid = torch.ones(1, len(window), dtype=torch.bool)
            logits.append(float(judge.model.clip_logits(window[None], valid)))
    return judge.description.calibration.probability(logits)


def test_windows_are_the_models_clips_and_span_no_gap() -> None:
    judge = tally("temporal")
    seen = frames(*[faces(100)] * 7, Reason.MISSING_FRAME, *[faces(100)] * 6)
    features_ND = features(13)
    result = scored(judge, seen, features_ND, at_once=5)
    expected = window_scores(judge, features_ND, [range(7), range(7, 13)])
    np.testing.assert_allclose(judge.tracks[1].scores.frame_scores, expected, atol=1e-6)
    assert np.ptp(expected) > 0.05
    assert [(s.start_s, s.end_s) for s in result.faces[0].segments] == [(0.0, 0.24), (0.32, 0.52)]


def test_a_frame_head_scores_frames_and_its_windows_are_their_means() -> None:
    judge = tally()
    seen, features_ND = frames(*[faces(100)] * 9), features(9)
    scored(judge, seen, features_ND, at_once=4)
    with torch.inference_mode():
        expected = judge.description.calibration.probability(judge.model.frame_logits(features_ND).numpy())
    track = judge.tracks[1]
    np.testing.assert_allclose(track.scores.frame_scores, expected, atol=1e-7)
    for t in range(9):
        window = expected[max(0, t + 1 - WINDOW) : t + 1]
        assert track.scores.window_scores[t] == pytest.approx(window.mean(), abs=1e-6)
        assert track.spreads[t] == pytest.approx(window.std(ddof=1) if t else 0.0, abs=1e-6)


def test_scores_come_back_in_order() -> None:
    judge = tally()
    (frame,) = frames(faces(100, 90, 80))
    awaited, features_ND = judge.add(frame), features(3)
    scores_N = judge.score(awaited, features_ND)
    assert scores_N.dtype == np.float64
    assert [judge.tracks[f.track_id].scores.frame_scores for f in awaited] == [[s] for s in scores_N.tolist()]
    assert judge.score([], features(0)).shape == (0,)


@pytest.mark.parametrize("shape", [(1, DIM), (2, DIM + 1), (2,)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    judge = tally()
    (frame,) = frames(faces(100, 90))
    with pytest.raises(ValueError, match=r"shape \(2, 6\); got"):
        judge.score(judge.add(frame), torch.zeros(shape))


@pytest.mark.parametrize("head", ["frame", "l2", "temporal"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_give_no_score(head: Head, value: float) -> None:
    judge = tally(head)
    (frame,) = frames(faces(100, 90))
    features_ND = features(2)
    features_ND[1] = torch.tensor([value, *features_ND[1, 1:]])
    with pytest.raises(ValueError, match="finite"):
        judge.score(judge.add(frame), features_ND)


def test_losses_are_counted_at_once() -> None:
    one_by_one, at_once = tally(), tally()
    seen: list[Faces | Reason] = [faces(100), *[Reason.QUEUE_FULL] * 7]
    for frame in frames(*seen):
        one_by_one.add(frame)
    at_once.add(frames(faces(100))[0])
    at_once.lose(Reason.QUEUE_FULL, 7)
    assert at_once.frames == one_by_one.frames
    at_once.lose(Reason.QUEUE_FULL, 10**9)
    assert (at_once.received, at_once.frames.dropped) == (10**9 + 8, {Reason.QUEUE_FULL: 10**9 + 7})


@pytest.mark.parametrize("head", ["frame", "temporal"])
def test_a_frame_that_cannot_be_scored_is_dropped_after_all(head: Head) -> None:
    judge = tally(head)
    first, second, third = frames(faces(100), faces(100, 90), faces(100, 90))
    judge.score(judge.add(first), features(1))
    awaited = judge.add(second)
    with pytest.raises(ValueError, match="finite"):
        judge.score(awaited, features(2) * math.inf)
    judge.give_up(awaited, Reason.SCORER_FAILED)
    assert list(judge.tracks) == [1]  # nothing is known of the other
    awaited = judge.add(third)
    assert [face.after_gap for face in awaited] == [True, True]
    judge.score(awaited, features(2))
    counts = judge.conclude(SUBJECT).frames
    assert (counts.received, counts.scored, counts.dropped) == (3, 2, {Reason.SCORER_FAILED: 1})
    assert judge.tracks[1].scores.window_lengths == [1, 1]


# --- conclusions out ------------------------------------------------------------------------------------------------


def test_every_frame_is_accounted_for() -> None:
    seen = [faces(100), faces(100), faces(), Reason.CORRUPT_FRAME, faces(20), Reason.CORRUPT_FRAME, faces(20, 100)]
    judge = tally()
    result = scored(judge, frames(*seen), features(3), at_once=2)
    assert (result.frames.received, result.frames.scored) == (judge.received, 3) == (7, 3)
    assert result.frames.dropped == {Reason.NO_FACE: 1, Reason.CORRUPT_FRAME: 2, Reason.FACE_TOO_SMALL: 1}
    assert any("2 of 7 frames" in warning for warning in result.warnings)


def test_the_face_that_decides_comes_first() -> None:
    """The most suspicious of the tracks that are long enough, though one that is too short is more so."""
    judge = tally(min_track_frames=3)
    weight_D = next(judge.model.head.parameters()).detach()[0]
    strength = {1: -1.0, 2: 1.0, 3: 4.0}
    seen = frames(*[faces(100, 90)] * 4, faces(100, 90, 80))
    for frame in seen:
        awaited = judge.add(frame)
        judge.score(awaited, torch.stack([weight_D * strength[face.track_id] for face in awaited]))
    result = judge.conclude(SUBJECT)
    assert [face.track_id for face in result.faces] == [2, 3, 1]
    assert result.score == result.faces[0].score
    assert result.verdict is Verdict.MANIPULATED
    assert result.score_kind == "calibrated_probability"


def test_the_last_frame_of_a_segment_lasts_as_long_as_the_media_say() -> None:
    media = VideoInfo("mp4", "h264", "yuv420p", 64, 48, 0, 1.0, 25, 25.0)
    judge = tally()
    awaited = [face for frame in frames(*[faces(100)] * 5) for face in judge.add(frame)]
    judge.score(awaited, features(5))
    result = judge.conclude(Subject(input="a.mp4", id="1234", media=media, timings_s={"decode": 1.0}))
    assert result.faces[0].segments[0].end_s == pytest.approx(0.2)
    assert (result.id, result.media, result.timings_s) == ("1234", media, {"decode": 1.0})


@pytest.mark.parametrize(
    ("seen", "status", "reason"),
    [
        ([], Status.FAILED, Reason.NO_FRAMES),
        ([Reason.DECODE_FAILED] * 2 + [Reason.CORRUPT_FRAME], Status.FAILED, Reason.DECODE_FAILED),
        ([faces(), Reason.CORRUPT_FRAME, Reason.CORRUPT_FRAME], Status.UNSCORED, Reason.NO_FACE),
        ([faces(), faces(), faces(10)], Status.UNSCORED, Reason.NO_USABLE_FACE),
        ([faces(), faces(10), Reason.DEPTH_FAILED, faces()], Status.UNSCORED, Reason.DEPTH_FAILED),
        ([Reason.CORRUPT_FRAME, Reason.CORRUPT_FRAME, Reason.DEPTH_FAILED], Status.UNSCORED, Reason.DEPTH_FAILED),
        ([Reason.FRAME_TOO_SMALL] * 2, Status.UNSCORED, Reason.FRAME_TOO_SMALL),
    ],
)
def test_why_there_is_nothing_to_score(seen: list[Faces | Reason], status: Status, reason: Reason) -> None:
    result = scored(tally(), frames(*seen), features(0), at_once=1)
    assert result.error is not None
    assert (result.status, result.error.code, result.score) == (status, reason, None)
    assert "a.mp4" in result.error.message
    assert result.id == "a.mp4"
    assert result.frames.received == len(seen)


def test_no_face_is_said_of_the_frames_that_were_seen_alone() -> None:
    some, every = (
        scored(tally(), frames(faces(), *lost), features(0), at_once=1).error
        for lost in ([Reason.CORRUPT_FRAME, Reason.MISSING_FRAME], [faces(), faces()])
    )
    assert some is not None
    assert every is not None
    assert "No face was found in 1 frames of a.mp4; the other 2 are damaged or missing; sample more" in some.message
    assert "No face was found in 3 frames of a.mp4; sample more" in every.message


def test_a_failure_keeps_the_account_so_far() -> None:
    judge = tally()
    for frame in frames(faces(100), Reason.CORRUPT_FRAME):
        judge.add(frame)
    result = judge.failed(SUBJECT, MediaError(Reason.HTTP_TIMEOUT, "It\nended"))
    assert result.error is not None
    assert (result.error.code, result.error.message) == (Reason.HTTP_TIMEOUT, "It ended.")
    assert (result.frames.received, result.frames.scored) == (2, 1)


def test_nothing_is_concluded_while_features_are_awaited() -> None:
    judge = tally()
    awaited: list[Awaited] = [face for frame in frames(faces(100, 90), faces(100)) for face in judge.add(frame)]
    judge.score(awaited[:2], features(2))
    with pytest.raises(ValueError, match=r"1 faces of a\.mp4 were never scored"):
        judge.conclude(SUBJECT)
