"""Fakes get all frames of their originals, and the boxes of those that show a face."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.config import Job
from pipelines.decode import _shown
from pipelines.pairs import GivenBoxes, SourceFaces
from pipelines.shards import Shards
from pipelines.work import MANIFEST_FILE, Work
from tests.products import BOX, Clip, finished_run
from unmask.manifest import Video, write_manifest
from unmask.storage import Store

NONE_04, ONE_14 = np.zeros((0, 4), np.float32), np.array([BOX], np.float32)
SECOND = (20.0, 60.0, 120.0, 190.0)


@pytest.fixture
def sources(tmp_path: Path) -> SourceFaces:
    clips = [
        Clip(
            video="real",
            faces={0: [BOX, SECOND], 10: [BOX], 20: [BOX]},
            faceless=frozenset({5, 15}),
            corrupt=frozenset({20}),
            missing=frozenset({25}),
        ),
        Clip(video="empty", faces={}, faceless=frozenset({0, 5}), status="empty"),
        Clip(video="failed", faces={}, status="failed"),
    ]
    store = Store(tmp_path)
    finished_run(store, clips)
    names = [*(clip.video for clip in clips), "fake"]
    write_manifest((Video(video=name, uri=f"/data/{name}.mp4") for name in names), store.uri_of(MANIFEST_FILE))
    shards = Shards(videos=4, size=2, paired_from=3)
    return SourceFaces(
        Work(store=store, run=1, job=Job(), shards=shards, plans=(), keys=(), config="c0ffee", detector="mtcnn")
    )


def of(sources: SourceFaces, source: str | None) -> GivenBoxes | None:
    return sources.of(Video(video="fake", uri="/data/fake.mp4", label=1, source=source))


def test_all_frames_of_the_original_and_the_boxes_of_those_with_a_face(sources: SourceFaces) -> None:
    given = of(sources, "real")
    assert given is not None
    assert given.times_s == tuple(frame / 25 for frame in (0, 5, 10, 15, 20, 25))
    # Nobody knows where the faces of a damaged frame are.
    assert [boxes_N4.tolist() for boxes_N4 in given.boxes] == [[list(BOX), list(SECOND)], [], [list(BOX)], [], [], []]
    assert all(boxes_N4.shape[1:] == (4,) for boxes_N4 in given.boxes)


@pytest.mark.parametrize("source", [None, "elsewhere", "failed", "empty", "fake"])
def test_without_a_face_of_an_original_nothing_is_given(sources: SourceFaces, source: str | None) -> None:
    assert of(sources, source) is None


@pytest.mark.parametrize(
    ("positions", "boxes", "expected"),
    [
        ([0, 1, 2], [0, 1, 0], [0, 1, 2]),
        ([0, 1, -1, -1], [1, 0, 1, 0], [0, 1]),  # a shorter fake
        ([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], [1, 2, 4]),  # one of fewer frames
        ([0, 0, 0], [0, 0, 0], [0]),
        ([-1, -1], [1, 1], []),
    ],
)
def test_of_times_that_show_one_frame_the_one_with_a_box(
    positions: list[int], boxes: list[int], expected: list[int]
) -> None:
    given = GivenBoxes(tuple(map(float, range(len(boxes)))), [ONE_14 if some else NONE_04 for some in boxes])
    assert _shown(np.array(positions, np.int64), given) == expected
