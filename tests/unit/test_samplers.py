"""Which faces an epoch draws, in which order, and how workers share them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.products import BOX, Clip, finished_run
from train.catalogue import Catalogue
from train.config import DataConfig
from train.samplers import Batches, Key, Pool, epoch_plan, main_track
from unmask.errors import UsageError
from unmask.storage import Store

SMALL, TINY = (20.0, 30.0, 70.0, 90.0), (5.0, 5.0, 25.0, 45.0)


def catalogued(folder: Path, clips: Sequence[Clip]) -> Catalogue:
    finished_run(Store(folder / "run"), clips, per_shard=3, side_px=16)
    return Catalogue.read([str(folder / "run")])


def clip(video: str, label: int | None, frames: Sequence[int], **columns: Any) -> Clip:
    return Clip(video=video, faces={f: [BOX] for f in frames}, columns={"label": label, **columns})


def pool_of(catalogue: Catalogue, *, clips: bool = False, mos: bool = False, **data: Any) -> Pool:
    return Pool.of(catalogue, range(len(catalogue.videos)), DataConfig(**data), clips=clips, mos=mos)


def frames_of(catalogue: Catalogue, pool: Pool) -> list[tuple[str, int, int]]:
    """Video, frame and rank of every face of a pool."""
    return [
        (catalogue.videos[catalogue.video_N[n]].about.video.removeprefix("run/"), int(catalogue.frame_N[n]),
         int(catalogue.face_N[n]))
        for faces in pool.faces for n in faces
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Two real videos of 3 and 2 faces, three fakes of 4 each."""
    real = [clip("r0", 0, (0, 4, 8)), clip("r1", 0, (0, 9))]
    return catalogued(
        tmp_path_factory.mktemp("unequal"), [*real, *(clip(f"f{n}", 1, (0, 2, 4, 6), source="r0") for n in range(3))]
    )


def test_frames_are_units_of_one_and_videos_units_of_all(unequal: Catalogue) -> None:
    frames, videos = pool_of(unequal), pool_of(unequal, clips=True)
    assert len(frames) == 17
    assert [len(f) for f in frames.faces] == [1] * 17
    assert [len(f) for f in videos.faces] == [3, 2, 4, 4, 4]
    assert np.concatenate(videos.faces).tolist() == np.concatenate(frames.faces).tolist() == list(range(17))
    assert frames.video_U.tolist() == unequal.video_N.tolist()
    assert frames.label_U.tolist() == [0.0] * 5 + [1.0] * 12


def test_opinion_scores_are_labels(tmp_path: Path) -> None:
    clips = [clip(f"v{n}", None, (0, 2), mos=1.5 + n) for n in range(2)]
    pool = pool_of(catalogued(tmp_path, clips), clips=True, mos=True)
    assert pool.label_U.tolist() == [1.5, 2.5]


def test_an_unlabelled_video_counts_as_real(tmp_path: Path) -> None:
    assert pool_of(catalogued(tmp_path, [clip("v", None, (0, 2))])).label_U.tolist() == [0.0, 0.0]


def test_the_largest_face_of_each_frame(tmp_path: Path) -> None:
    faces = {0: [SMALL, BOX], 3: [BOX, TINY, SMALL], 7: [TINY], 9: [SMALL, TINY]}
    catalogue = catalogued(tmp_path, [Clip(video="v", faces=faces, columns={"label": 0})])
    assert frames_of(catalogue, pool_of(catalogue, faces="largest", min_face_px=1)) == [
        ("v", 0, 1), ("v", 3, 0), ("v", 7, 0), ("v", 9, 0),
    ]  # fmt: skip
    assert len(pool_of(catalogue, min_face_px=1)) == 8


def test_small_faces_and_damaged_frames_are_left_out(tmp_path: Path) -> None:
    faces = {0: [SMALL, BOX], 3: [BOX, TINY], 7: [BOX], 9: [TINY]}
    catalogue = catalogued(
        tmp_path, [Clip(video="v", faces=faces, corrupt=frozenset({7}), columns={"label": 0}), clip("w", 1, ())]
    )
    assert frames_of(catalogue, pool_of(catalogue, min_face_px=20)) == [
        ("v", 0, 0), ("v", 0, 1), ("v", 3, 0), ("v", 3, 1), ("v", 9, 0),
    ]  # fmt: skip
    # The shorter side decides: of BOX 100 by 130, of SMALL 50 by 60.
    assert frames_of(catalogue, pool_of(catalogue, min_face_px=50)) == [("v", 0, 0), ("v", 0, 1), ("v", 3, 0)]
    assert frames_of(catalogue, pool_of(catalogue, min_face_px=51)) == [("v", 0, 1), ("v", 3, 0)]
    # The largest of those that are large enough.
    assert frames_of(catalogue, pool_of(catalogue, min_face_px=101)) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 10, 11])
def test_frames_are_spread_over_the_video(tmp_path: Path, count: int) -> None:
    there = [0, 1, 2, 3, 10, 11, 12, 20, 30, 39]
    catalogue = catalogued(tmp_path, [Clip(video="v", faces={f: [BOX, SMALL] for f in there})])
    found = frames_of(catalogue, pool_of(catalogue, frames_per_video=count))
    frames = list(dict.fromkeys(frame for _, frame, _ in found))
    assert len(found) == 2 * len(frames)  # all faces of a frame, or none
    assert len(frames) == min(count, 10)
    places = [there.index(f) for f in frames]
    if 1 < count < 10:
        assert (places[0], places[-1]) == (0, 9)
        steps = np.diff(places)
        assert steps.max() - steps.min() <= 1


def test_the_main_track_is_the_one_with_most_faces(tmp_path: Path) -> None:
    faces = {0: [BOX, SMALL], 2: [SMALL, BOX], 4: [BOX], 6: [BOX, SMALL]}  # the track is the rank here
    catalogue = catalogued(tmp_path, [Clip(video="v", faces=faces, corrupt=frozenset({4}), columns={"label": 0})])
    rows = np.arange(len(catalogue))
    assert catalogue.track_N.tolist() == [0, 1, 0, 1, -1, 0, 1]
    assert main_track(catalogue, rows).tolist() == [0, 2, 5]  # the earlier one of two
    assert main_track(catalogue, rows[1:]).tolist() == [1, 3, 6]
    assert main_track(catalogue, rows[4:5]).tolist() == []
    pool = Pool([rows, rows[4:5]], np.array([0, 0], np.int32), np.array([0, 1], np.float32))
    kept = pool.on_main_tracks(catalogue)
    assert [f.tolist() for f in kept.faces] == [[0, 2, 5]]
    assert kept.label_U.tolist() == [0.0]


def units(keys: Sequence[Key]) -> list[int]:
    return [key.unit for key in keys]


def test_balanced_takes_all_reals_and_as_many_fakes_anew_each_epoch(unequal: Catalogue) -> None:
    pool, config = pool_of(unequal), DataConfig(draw="balanced")
    seen: Counter[int] = Counter()
    orders = set()
    for epoch in range(60):
        plan = epoch_plan(pool, unequal, config, seed=3, epoch=epoch)
        assert [key.position for key in plan] == list(range(10))
        assert {(key.epoch, key.blend) for key in plan} == {(epoch, False)}
        assert sorted(u for u in units(plan) if u < 5) == [0, 1, 2, 3, 4]
        fakes = [u for u in units(plan) if u >= 5]
        assert len(set(fakes)) == 5  # none twice
        seen.update(fakes)
        orders.add(tuple(units(plan)))
    assert len(orders) == 60
    # Each of 12 fakes has 5 chances in 12 each epoch: 25 times in 60, give or take four standard deviations.
    assert set(seen) == set(range(5, 17))
    assert all(abs(count - 25) <= 4 * (60 * 5 / 12 * 7 / 12) ** 0.5 for count in seen.values())


def test_balanced_shows_every_fake_where_they_are_fewer(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, [clip("r", 0, range(8)), clip("f", 1, (0, 3, 6))])
    for epoch in range(5):
        plan = epoch_plan(pool_of(catalogue), catalogue, DataConfig(draw="balanced"), seed=0, epoch=epoch)
        counts = Counter(units(plan))
        assert [counts[u] for u in range(8)] == [1] * 8
        assert sorted(counts[u] for u in range(8, 11)) == [2, 3, 3]


def test_the_same_seed_and_epoch_give_the_same_plan(unequal: Catalogue) -> None:
    for draw in ("all", "balanced", "pairs"):
        config = DataConfig(draw=draw)
        first, again, other, later = (
            epoch_plan(pool_of(unequal), unequal, config, seed=s, epoch=e) for s, e in ((1, 2), (1, 2), (2, 2), (1, 3))
        )
        assert first == again
        assert units(first) != units(other)
        assert units(first) != units(later)


def test_pairs_stand_side_by_side_from_one_source_at_the_nearest_frame(tmp_path: Path) -> None:
    real = [clip("r0", 0, (0, 10, 20)), clip("r1", 0, (1, 11))]
    fake = [
        clip("f0", 1, (0, 6, 19), source="r0"),
        clip("f1", 1, (4, 11), source="r1"),
        clip("lost", 1, (0,), source="elsewhere"),
        clip("unknown", 1, (5,)),
    ]
    catalogue = catalogued(tmp_path, [*real, *fake])
    pool = pool_of(catalogue)
    nearest = {("f0", 0): ("r0", 0), ("f0", 6): ("r0", 10), ("f0", 19): ("r0", 20), ("f1", 4): ("r1", 1),
               ("f1", 11): ("r1", 11)}  # fmt: skip
    partners: dict[str, set[tuple[str, int]]] = {"lost": set(), "unknown": set()}
    orders = set()
    for epoch in range(40):
        plan = epoch_plan(pool, catalogue, DataConfig(draw="pairs"), seed=0, epoch=epoch)
        named = [frames_of(catalogue, Pool([pool.faces[key.unit]], pool.video_U, pool.label_U))[0] for key in plan]
        pairs = [(left[:2], right[:2]) for left, right in zip(named[::2], named[1::2], strict=True)]
        assert len(pairs) == 7
        assert sorted(right for _, right in pairs) == sorted([*nearest, ("lost", 0), ("unknown", 5)])
        for left, right in pairs:
            if right in nearest:
                assert left == nearest[right]
            else:
                assert left[0] in ("r0", "r1")
                partners[right[0]].add(left)
        orders.add(tuple(right for _, right in pairs))
    assert len(orders) > 30
    # Without a known original, any real face.
    assert all(len(found) == 5 for found in partners.values())


def test_self_blends_are_pairs_of_every_real_face(unequal: Catalogue) -> None:
    plan = epoch_plan(pool_of(unequal), unequal, DataConfig(draw="selfblend"), seed=0, epoch=4)
    assert [key.position for key in plan] == list(range(10))
    assert [key.blend for key in plan] == [False, True] * 5
    assert units(plan)[::2] == units(plan)[1::2]
    assert sorted(units(plan)[::2]) == [0, 1, 2, 3, 4]
    later = epoch_plan(pool_of(unequal), unequal, DataConfig(draw="selfblend"), seed=0, epoch=5)
    assert units(later) != units(plan)


@pytest.mark.parametrize("times", [1, 3])
def test_all_units_are_drawn_as_many_times_as_clips_are_wanted(unequal: Catalogue, times: int) -> None:
    config = DataConfig(draw="all", clips_per_video=times)
    plan = epoch_plan(pool_of(unequal, clips=True), unequal, config, seed=0, epoch=0)
    assert Counter(units(plan)) == dict.fromkeys(range(5), times)
    assert len({key.position for key in plan}) == len(plan)  # other clips of the same video
    frames = epoch_plan(pool_of(unequal), unequal, config, seed=0, epoch=0)
    assert Counter(units(frames)) == dict.fromkeys(range(17), 1)  # a frame is a frame


@pytest.mark.parametrize("draw", ["balanced", "pairs", "selfblend"])
def test_a_class_that_is_missing_is_said(unequal: Catalogue, draw: str) -> None:
    fakes = Pool.of(unequal, [2, 3], DataConfig(), clips=False, mos=False)
    with pytest.raises(UsageError, match="there is no real face to train on, and this recipe needs both classes"):
        epoch_plan(fakes, unequal, DataConfig(draw=draw), seed=0, epoch=0)  # type: ignore[arg-type]
    if draw != "selfblend":
        reals = Pool.of(unequal, [0, 1], DataConfig(), clips=False, mos=False)
        with pytest.raises(UsageError, match="no fake face"):
            epoch_plan(reals, unequal, DataConfig(draw=draw), seed=0, epoch=0)  # type: ignore[arg-type]


def plan_of(samples: int) -> list[Key]:
    return [Key(7, n, 100 + n, n % 2 == 1) for n in range(samples)]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 5, 12, 24, 31])
def test_shares_are_disjoint_and_join_to_the_plan(workers: int, samples: int) -> None:
    plan, batch = plan_of(samples), 4
    shares = [Batches(plan, batch, rank=rank, workers=workers) for rank in range(workers)]
    assert {share.steps for share in shares} == {-(-samples // (batch * workers))}
    assert all(len(keys) == batch for share in shares for keys in share)
    joined = [key for step in zip(*shares, strict=True) for keys in step for key in keys]
    assert joined[:samples] == plan
    # Filled up from the beginning, with random numbers of their own.
    rest = joined[samples:]
    assert len(rest) < batch * workers
    assert [key.unit for key in rest] == [plan[n % samples].unit for n in range(len(rest))]
    assert [key.blend for key in rest] == [plan[n % samples].blend for n in range(len(rest))]
    assert [key.position for key in rest] == list(range(samples, len(joined)))
    assert {key.epoch for key in joined} == {7}


@pytest.mark.parametrize("start", [0, 1, 2, 5, 6, 9])
def test_it_begins_anywhere(start: int) -> None:
    whole = list(Batches(plan_of(23), 2, rank=1, workers=2))
    assert len(whole) == 6
    share = Batches(plan_of(23), 2, rank=1, workers=2, start=start)
    assert len(share) == len(list(share)) == max(6 - start, 0)
    assert list(share) == whole[start:]
    assert list(share) == list(share)  # as often as one likes


def test_an_epoch_may_have_more_steps_than_the_plan_fills_or_fewer() -> None:
    plan = plan_of(5)
    keys = [key for batch in Batches(plan, 3, steps=4) for key in batch]
    assert [key.unit for key in keys] == [100, 101, 102, 103, 104, 100, 101, 102, 103, 104, 100, 101]
    assert [key.position for key in keys] == list(range(12))
    assert [key.unit for batch in Batches(plan, 2, steps=1) for key in batch] == [100, 101]


def test_the_pairs_of_self_blends_stay_pairs_when_the_plan_begins_again(unequal: Catalogue) -> None:
    plan = epoch_plan(pool_of(unequal), unequal, DataConfig(draw="selfblend"), seed=0, epoch=0)
    keys = [key for batch in Batches(plan, 4, steps=9) for key in batch]
    for real, fake in zip(keys[::2], keys[1::2], strict=True):
        assert (real.unit, real.blend, fake.blend) == (fake.unit, False, True)
        assert real.position // 2 == fake.position // 2
