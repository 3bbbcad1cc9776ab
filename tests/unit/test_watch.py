import itertools
from pathlib import Path

import pytest
import torch

from tests import clips
from tests.portraits import filmed, scenery
from unmask.errors import Reason
from unmask.mtcnn import MTCNN
from unmask.plan import Sampling
from unmask.video import VideoReader
from unmask.watch import Seen, Stopwatch, watch
from unmask.workers import Workers


@pytest.fixture(scope="module")
def detector() -> MTCNN:
    return MTCNN()


def seen(path: Path, sampling: Sampling, detector: MTCNN) -> list[Seen]:
    with VideoReader(path) as reader:
        return list(watch(reader, sampling, detector, Workers(torch.device("cpu")), Stopwatch()))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(frames=7)], ids=["dense", "sparse"])
def test_every_frame_gets_one_answer_in_order(sampling: Sampling, detector: MTCNN, tmp_path: Path) -> None:
    images = [*filmed(12), *scenery(12), *filmed(12)]
    path = clips.clip(tmp_path / "clip", images=images, width=320, height=240)
    answers = seen(path, sampling, detector)
    with VideoReader(path) as reader:
        assert [a.pts_s for a in answers] == reader.times_s(sampling).tolist()
    for answer in answers:
        has_face = not 12 <= answer.index < 24
        assert answer.reason is (None if has_face else Reason.NO_FACE)
        assert len(answer.sightings) == len(answer.faces)
        # Seldom, and not in every run, a second face is seen in a frame of the portrait.
        assert (len(answer.faces) > 0) == has_face
        assert answer.frame is not None
        assert answer.frame.index == answer.index


def test_damaged_frames_are_not_looked_at_and_leave_a_gap(detector: MTCNN, tmp_path: Path) -> None:
    whole = clips.clip(tmp_path / "whole", images=filmed(60), width=320, height=240)
    answers = seen(clips.flipped(whole, tmp_path / "flipped.mp4", count=40, after=0.3), Sampling(), detector)
    damaged = [a for a in answers if a.frame is None]
    assert damaged
    assert {a.reason for a in damaged} <= {Reason.CORRUPT_FRAME, Reason.DECODE_FAILED, Reason.MISSING_FRAME}
    for before, after in itertools.pairwise(answers):
        if before.frame is None and after.sightings:
            assert all(sighting.after_gap for sighting in after.sightings)


def test_a_scene_cut_starts_a_new_track(detector: MTCNN, tmp_path: Path) -> None:
    """The same face at the same place, in another scene, may be anyone."""
    images = list(filmed(24))
    lit = [image // 2 + 120 for image in images[12:]]
    path = clips.clip(tmp_path / "clip", images=[*images[:12], *lit], width=320, height=240)
    answers = seen(path, Sampling(), detector)
    assert [{s.track_id for a in half for s in a.sightings} for half in (answers[:12], answers[12:])] == [{1}, {2}]


def test_leaving_early_ends_the_decoder(detector: MTCNN, tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", images=filmed(40), width=320, height=240)
    with VideoReader(path) as reader:
        answers = watch(reader, Sampling(), detector, Workers(torch.device("cpu")), Stopwatch())
        assert next(answers).index == 0
        answers.close()


def test_time_is_booked_by_stage(detector: MTCNN, tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", images=filmed(4), width=320, height=240)
    stopwatch = Stopwatch()
    with VideoReader(path) as reader:
        list(watch(reader, Sampling(), detector, Workers(torch.device("cpu")), stopwatch))
    assert set(stopwatch.seconds) == {"decode", "detect"}
    assert all(seconds > 0 for seconds in stopwatch.seconds.values())
