"""Follow mode: stays on moving faces, notices what is lost, new or cut, and batches over streams."""

import warnings
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from unmask.detection import Images
from unmask.errors import UsageError
from unmask.follow import Follower, follow
from unmask.mtcnn import MTCNN
from unmask.records import Faces

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from skimage.data import astronaut

Image = NDArray[np.uint8]
RATE = 25.0


class Counting(MTCNN):
    """A detector that counts what it is asked for."""

    searched = refined = 0

    def search(self, images: Images, **options: object) -> list[Faces]:
        self.searched += len(images)
        return super().search(images, **options)  # type: ignore[arg-type]

    def refine(self, images: Images, boxes: Sequence[NDArray[np.float32]]) -> list[Faces]:
        self.refined += len(images)
        return super().refine(images, boxes)


@pytest.fixture(scope="module")
def detector() -> MTCNN:
    return MTCNN()


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner))


def drifting(index: int) -> Image:
    """The camera drifts to the side and down and zooms in."""
    size = 1.0 + 0.008 * index
    turn = np.array([[size, 0, -20 - 3.0 * index], [0, size, 20 - 2.0 * index]])
    return cv2.warpAffine(astronaut(), turn, (480, 360), borderMode=cv2.BORDER_REFLECT)


def empty(_index: int) -> Image:
    """The lower part of the picture, without a face."""
    return cv2.resize(astronaut()[300:500, :200], (480, 360))


def run(follower: Follower, pictures: Callable[[int], Image], start: int, stop: int) -> list[Faces]:
    return [follower(pictures(index), index / RATE) for index in range(start, stop)]


def test_follows_a_drifting_face(detector: MTCNN) -> None:
    follower = Follower(detector, search_every=12)
    ious, searches = [], 0
    for index in range(24):
        image = drifting(index)
        faces = follower(image, index / RATE)
        searches += follower.searched
        found = detector.search([image])[0]
        assert len(faces) == len(found) == 1
        assert np.abs(faces.landmarks_NK2 - found.landmarks_NK2).max() < 0.06 * np.ptp(found.boxes_N4[0, ::2])
        ious.append(iou(faces.boxes_N4[0], found.boxes_N4[0]))
    assert searches == 2
    assert np.mean(ious) >= 0.9


def test_followers_of_other_phases_search_other_frames_that_come_together(detector: MTCNN) -> None:
    still, searched = drifting(0), {}
    for phase in (0.0, 0.25, 0.6):
        follower = Follower(detector, search_every_s=0.5, phase=phase)
        flags = []
        for index in range(10):
            follower(still, index / 5.0)
            flags.append(follower.searched)
        searched[phase] = [index for index, flag in enumerate(flags) if flag]
    assert searched == {0.0: [0, 3, 6, 9], 0.25: [0, 2, 5, 8], 0.6: [0, 1, 4, 7]}


def test_searches_every_so_often_in_frames_and_in_time(detector: MTCNN) -> None:
    still = drifting(0)
    by_frames, by_time = Follower(detector, search_every=4, search_every_s=9), Follower(detector, search_every_s=0.2)
    flags = []
    for index in range(9):
        by_frames(still, index / RATE)
        by_time(still, index / 10)
        flags.append((by_frames.searched, by_time.searched))
    assert [a for a, _ in flags] == [index % 4 == 0 for index in range(9)]
    # At 10 frames a second every second frame is searched, so that no gap between searches passes 0.2 s.
    assert [b for _, b in flags] == [index % 2 == 0 for index in range(9)]


def test_a_lost_face_triggers_a_search(detector: MTCNN) -> None:
    follower = Follower(detector, search_every=100, search_every_s=99, cut=255)
    assert len(run(follower, drifting, 0, 6)[-1]) == 1
    assert not follower.searched
    assert len(follower(empty(6), 6 / RATE)) == 0
    assert follower.searched


def test_a_face_that_jumps_is_found_again(detector: MTCNN) -> None:
    follower = Follower(detector, search_every=100, search_every_s=99, cut=255)
    run(follower, drifting, 0, 6)
    jumped = np.roll(drifting(6), 150, axis=1)
    faces = follower(jumped, 6 / RATE)
    assert follower.searched
    assert len(faces) == len(detector.search([jumped])[0]) == 1


def test_vain_searches_become_rare() -> None:
    counting = Counting()
    follower = Follower(counting, search_every=50, search_every_s=99, cut=255)
    run(follower, drifting, 0, 6)
    run(follower, empty, 6, 46)
    assert counting.searched == 2


def test_a_scene_cut_triggers_a_search(detector: MTCNN) -> None:
    follower = Follower(detector, search_every=100, search_every_s=99)
    run(follower, drifting, 0, 3)
    assert not follower.searched
    mirrored = 255 - drifting(3)
    follower(mirrored, 3 / RATE)
    assert follower.searched
    follower(mirrored, 4 / RATE)
    assert not follower.searched


def test_a_gap_in_time_and_a_new_size_trigger_a_search(detector: MTCNN) -> None:
    follower = Follower(detector, search_every=100, search_every_s=2.0)
    run(follower, drifting, 0, 3)
    follower(drifting(3), 10.0)
    assert follower.searched
    follower(drifting(3)[:300].copy(), 10.04)
    assert follower.searched
    follower(drifting(3)[:300].copy(), 10.0)
    assert follower.searched


def test_a_face_that_comes_later_is_found_within_search_every(detector: MTCNN) -> None:
    follower = Follower(detector, search_every=5, cut=255)
    counts = [len(faces) for faces in run(follower, empty, 0, 7)] + [len(f) for f in run(follower, drifting, 7, 12)]
    assert counts == [0] * 10 + [1, 1]


def test_several_streams_at_once_equal_each_alone(detector: MTCNN) -> None:
    makers: list[Callable[[int], Image]] = [drifting, empty, lambda i: np.ascontiguousarray(drifting(i)[:, ::-1])]
    alone = [run(Follower(detector, search_every=3), maker, 0, 5) for maker in makers]
    followers = [Follower(detector, search_every=3) for _ in makers]
    for index in range(5):
        together = follow(followers, [maker(index) for maker in makers], [index / RATE] * 3)
        for faces, single in zip(together, alone, strict=True):
            np.testing.assert_allclose(faces.boxes_N4, single[index].boxes_N4, atol=0.05)


def test_known_faces_cost_no_search() -> None:
    counting = Counting()
    run(Follower(counting, search_every=8), drifting, 0, 8)
    assert (counting.searched, counting.refined) == (1, 7)


def test_faces_come_most_probable_first(detector: MTCNN) -> None:
    follower = Follower(detector, search_every=6)
    pair = np.concatenate((drifting(0), cv2.GaussianBlur(drifting(0)[:, ::-1], (0, 0), 3)), 1)
    for index in range(4):
        faces = follower(pair, index / RATE)
        assert len(faces) == 2
        assert faces.probabilities_N[0] >= faces.probabilities_N[1]


def test_bad_use(detector: MTCNN) -> None:
    assert follow([], [], []) == []
    for options in ({"search_every": 0}, {"search_every_s": 0.0}, {"cut": -1.0}):
        with pytest.raises(UsageError, match="above 0"):
            Follower(detector, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="share"):
        follow([Follower(detector), Follower(MTCNN())], [drifting(0)] * 2, [0.0, 0.0])
    with pytest.raises(UsageError, match="one image"):
        follow([Follower(detector)], [], [0.0])
