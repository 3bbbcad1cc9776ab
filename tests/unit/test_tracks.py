import numpy as np
import pytest

from unmask.records import Faces
from unmask.tracks import Tracker


def faces(*centres: tuple[float, float], side: float = 100) -> Faces:
    boxes = np.array([[x - side / 2, y - side / 2, x + side / 2, y + side / 2] for x, y in centres], np.float32)
    n = len(centres)
    return Faces(boxes.reshape(n, 4), np.ones(n, np.float32), np.zeros((n, 5, 2), np.float32))


def ids(tracker: Tracker, found: Faces, pts_s: float, *, cut: bool = False) -> list[int]:
    return [s.track_id for s in tracker.update(found, pts_s, cut=cut)]


def test_two_faces_keep_their_tracks_whatever_their_order() -> None:
    tracker = Tracker()
    for k in range(20):
        left, right = (100 + 3 * k, 200), (500 - 3 * k, 200)
        found = faces(left, right) if k % 2 else faces(right, left)
        assert ids(tracker, found, k / 25) == ([1, 2] if not k else ([2, 1] if k % 2 else [1, 2]))


def test_sparse_samples_join_a_face_that_moved_most_of_its_width() -> None:
    tracker = Tracker()
    assert ids(tracker, faces((100, 100)), 0.0) == [1]
    assert ids(tracker, faces((220, 100)), 2.0) == [1]


def test_dense_samples_do_not_join_what_jumps() -> None:
    tracker = Tracker()
    assert ids(tracker, faces((100, 100)), 0.0) == [1]
    assert ids(tracker, faces((220, 100)), 0.04) == [2]


def test_a_face_of_another_size_is_another_face() -> None:
    tracker = Tracker()
    assert ids(tracker, faces((100, 100)), 0.0) == [1]
    assert ids(tracker, faces((100, 100), side=250), 0.3) == [2]


def test_a_missed_frame_is_a_gap_in_the_same_track() -> None:
    tracker = Tracker()
    marks = [tracker.update(f, t)[0] for t, f in [(0.0, faces((100, 100))), (0.1, faces((101, 100)))]]
    assert tracker.update(Faces.none(), 0.2) == []
    marks += tracker.update(faces((102, 100)), 0.3)
    tracker.skip()
    marks += tracker.update(faces((103, 100)), 0.5)
    marks += tracker.update(faces((104, 100)), 0.6)
    assert [m.track_id for m in marks] == [1] * 5
    assert [m.after_gap for m in marks] == [True, False, True, True, False]


def test_a_face_away_for_long_is_a_new_track() -> None:
    tracker = Tracker(lost_after_s=1.0)
    assert ids(tracker, faces((100, 100)), 0.0) == [1]
    for k in range(1, 15):
        assert ids(tracker, Faces.none(), k / 10) == []
    assert ids(tracker, faces((100, 100)), 1.5) == [2]


def test_a_cut_ends_all_tracks() -> None:
    tracker = Tracker()
    assert ids(tracker, faces((100, 100)), 0.0) == [1]
    assert ids(tracker, faces((100, 100)), 0.04, cut=True) == [2]


@pytest.mark.parametrize("seed", range(5))
def test_every_face_gets_one_track_and_no_track_two_faces(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tracker = Tracker()
    for k in range(50):
        found = faces(*[tuple(rng.uniform(0, 400, 2)) for _ in range(rng.integers(0, 6))], side=80)
        given = ids(tracker, found, k / 25)
        assert len(given) == len(found)
        assert len(set(given)) == len(given)
