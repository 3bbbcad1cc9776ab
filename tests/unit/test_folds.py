import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines import datasets
from unmask.errors import StorageError, UsageError
from unmask.folds import assign_folds, assign_splits, check_leaks, read_folds, write_folds
from unmask.manifest import Video


@st.composite
def manifests(draw: st.DrawFn) -> list[Video]:
    """Reals and fakes of a few people, with originals that are there, are not, or are fakes themselves."""
    count = draw(st.integers(4, 40))
    people = st.sampled_from([f"p{i}" for i in range(30)])
    sources = st.sampled_from([f"v{i}" for i in range(count + 5)])
    return [
        Video(
            video=f"v{i}",
            uri=f"/v{i}.mp4",
            label=draw(st.sampled_from([0, 1, None])),
            identity=tuple(draw(st.lists(people, max_size=2, unique=True))),
            source=draw(st.one_of(st.none(), st.none(), sources)),
        )
        for i in range(count)
    ]


def places(videos: list[Video], assignment: Mapping[str, Hashable]) -> dict[str, set[Hashable]]:
    """Where each person and each original is, found another way than in the code that is tested."""
    found = defaultdict(set)
    for video in videos:
        if video.video in assignment:
            names = [f"person {name}" for name in video.identity]
            for name in [*names, f"video {video.video}", *([f"video {video.source}"] if video.source else [])]:
                found[name].add(assignment[video.video])
    return found


@contextmanager
def enough_groups() -> Iterator[None]:
    """Drops an example whose videos all hang together."""
    try:
        yield
    except UsageError as error:
        if "too few" not in error.message:
            raise
        assume(False)


@settings(max_examples=80, deadline=None)
@given(manifests(), st.integers(2, 5), st.integers(0, 3), st.randoms())
def test_folds_leak_nobody_and_do_not_depend_on_order(
    videos: list[Video], folds: int, seed: int, shuffler: random.Random
) -> None:
    with enough_groups():
        assigned = assign_folds(videos, folds, seed=seed)
    assert assigned.keys() == {v.video for v in videos}
    assert set(assigned.values()) <= set(range(folds))
    assert all(len(where) == 1 for where in places(videos, assigned).values())
    check_leaks(videos, assigned)
    shuffled = shuffler.sample(videos, len(videos))
    assert assign_folds(iter(shuffled), folds, seed=seed) == assigned


@settings(max_examples=80, deadline=None)
@given(manifests(), st.integers(0, 3), st.sampled_from(["together", "left_out"]), st.randoms())
def test_splits_leak_nobody_and_do_not_depend_on_order(
    videos: list[Video], seed: int, crossing: str, shuffler: random.Random
) -> None:
    with enough_groups():
        assigned = assign_splits(videos, seed=seed, crossing=crossing)  # type: ignore[arg-type]
    left_out = [v for v in videos if v.video not in assigned]
    assert all(crossing == "left_out" and v.label == 1 and len(v.identity) == 2 for v in left_out)
    assert all(len(where) == 1 for where in places(videos, assigned).values())
    check_leaks(videos, assigned)
    shuffled = shuffler.sample(videos, len(videos))
    assert assign_splits(shuffled, seed=seed, crossing=crossing) == assigned  # type: ignore[arg-type]


def dfdc(parts: int, per_part: int = 4) -> list[Video]:
    """A real video and three fakes of it, over and over."""
    videos = []
    for number in range(parts * per_part):
        original = f"r{number:05d}"
        part = str(number % parts)
        videos.append(Video(video=original, uri="/x", label=0, identity=(original,), part=part))
        videos += [
            Video(video=f"f{number:05d}{k}", uri="/x", label=1, identity=(original,), source=original, part=part)
            for k in range(number % 5)
        ]
    return videos


def test_folds_have_their_share_of_reals_and_fakes() -> None:
    videos = dfdc(parts=50, per_part=16)
    for seed in range(3):
        assigned = assign_folds(videos, 16, seed=seed)
        for label in (0, 1):
            sizes = Counter(assigned[v.video] for v in videos if v.label == label)
            assert len(sizes) == 16
            assert max(sizes.values()) - min(sizes.values()) <= 1
    assert assign_folds(videos, 16, seed=0) != assign_folds(videos, 16, seed=1)


def test_splits_have_their_shares() -> None:
    videos = dfdc(parts=50, per_part=16)
    assigned = assign_splits(videos, (0.7, 0.1, 0.2))
    for label in (0, 1):
        members = [assigned[v.video] for v in videos if v.label == label]
        for split, share in [("train", 0.7), ("val", 0.1), ("test", 0.2)]:
            assert members.count(split) / len(members) == pytest.approx(share, abs=0.005)
    assert set(assign_splits(videos, (0.8, 0.0, 0.2)).values()) == {"train", "test"}


def test_folds_by_part_are_runs_of_three_parts_and_a_longer_last_one() -> None:
    videos = dfdc(parts=50)
    assigned = assign_folds(videos, 16, by="part")
    parts = defaultdict(set)
    for video in videos:
        parts[assigned[video.video]].add(int(video.part or -1))
    assert parts[0] == {0, 1, 2}
    assert parts[14] == {42, 43, 44}
    assert parts[15] == {45, 46, 47, 48, 49}


def test_a_fake_of_another_part_goes_to_the_fold_of_its_original() -> None:
    videos = [
        Video(video="fake", uri="/x", label=1, source="real", part="0"),
        Video(video="real", uri="/x", label=0, part="49"),
        Video(video="alone", uri="/x", label=1, source="lost", part="7"),
        Video(video="sibling", uri="/x", label=1, source="lost", part="20"),
    ]
    assert assign_folds(videos, 16, by="part") == {"fake": 15, "real": 15, "alone": 2, "sibling": 2}


@pytest.mark.parametrize("part", [None, "C1"])
def test_folds_by_part_need_part_numbers(part: str | None) -> None:
    with pytest.raises(UsageError, match="need DFDC's part numbers"):
        assign_folds([Video(video="a", uri="/x", part=part)], 2, by="part")


def celebdf(people: int = 20) -> list[Video]:
    """Everybody is swapped with everybody."""
    reals = [
        Video(video=f"real/id{a}_{n}", uri="/x", label=0, identity=(f"id{a}",), split="test" if a < 3 else "train")
        for a in range(people)
        for n in range(3)
    ]
    fakes = [
        Video(
            video=f"fake/id{a}_id{b}_{n}",
            uri="/x",
            label=1,
            identity=(f"id{a}", f"id{b}"),
            source=f"real/id{a}_{n}",
            split="test" if a < 3 else "train",
        )
        for a in range(people)
        for b in range(people)
        for n in range(3)
        if a != b
    ]
    return reals + fakes


def test_people_who_are_all_swapped_with_each_other_need_fakes_left_out() -> None:
    videos = celebdf()
    with pytest.raises(
        UsageError, match=r"The real videos hang together .* in 1 group, too few for 3 folds; .*left_out"
    ):
        assign_splits(videos)
    assigned = assign_splits(videos, (0.6, 0.2, 0.2), crossing="left_out")
    check_leaks(videos, assigned)
    people = {
        split: {v.identity[0] for v in videos[:60] if assigned[v.video] == split} for split in ("train", "val", "test")
    }
    assert [len(p) for p in people.values()] == [12, 4, 4]
    kept = [v for v in videos[60:] if v.video in assigned]
    assert len(kept) == 3 * (12 * 11 + 4 * 3 + 4 * 3)


def test_fakes_are_kept_where_their_originals_are_not_listed() -> None:
    videos = [v for v in celebdf() if v.label == 1]
    assigned = assign_splits(videos, (0.6, 0.2, 0.2), crossing="left_out")
    check_leaks(videos, assigned)
    assert len(assigned) == 3 * (12 * 11 + 4 * 3 + 4 * 3)


def test_no_split_is_empty_where_there_is_a_group_for_each() -> None:
    videos = [Video(video=f"v{i}", uri="/x", label=0) for i in range(3)]
    assert sorted(assign_splits(videos, (0.98, 0.01, 0.01)).values()) == ["test", "train", "val"]


def test_official_splits_are_kept_and_val_is_taken_from_train() -> None:
    splits = {"0": None, "1": "test"}
    marked = [replace(v, split=splits.get(v.part or "", "train")) for v in dfdc(parts=10)]
    assigned = assign_splits(marked, (0.7, 0.1, 0.2), official=True)
    check_leaks(marked, assigned)
    assert {v.video for v in marked if v.split == "test"} == {k for k, split in assigned.items() if split == "test"}
    assert all((v.video in assigned) == (v.split is not None) for v in marked)
    val = sum(split == "val" for split in assigned.values())
    train = sum(split == "train" for split in assigned.values())
    assert val / (val + train) == pytest.approx(0.125, abs=0.05)
    assert assign_splits(marked, (0.8, 0.0, 0.2), official=True) == {v.video: v.split for v in marked if v.split}


def test_official_splits_that_leak_are_found() -> None:
    videos = celebdf()
    official = assign_splits(videos, (0.8, 0.0, 0.2), official=True)
    with pytest.raises(
        UsageError, match=r"the person 'id3' is in train \(real/id3_0\) and test \(fake/id0_id3_0\); 20 "
    ):
        check_leaks(videos, official)


def test_without_an_official_split_none_can_be_kept() -> None:
    with pytest.raises(UsageError, match="No video has an official split"):
        assign_splits(dfdc(parts=2), official=True)


def test_a_fake_apart_from_its_original_leaks_also_where_that_is_not_listed() -> None:
    real = Video(video="r", uri="/x", label=0)
    fakes = [Video(video=f"f{i}", uri="/x", label=1, source=source) for i, source in enumerate(["r", "lost", "lost"])]
    with pytest.raises(
        UsageError, match=r"the video 'r' or what was made from it is in 0 \(r\) and 1 \(f0\); 1 people"
    ):
        check_leaks([real, *fakes], {"r": 0, "f0": 1, "f1": 0, "f2": 0})
    with pytest.raises(UsageError, match=r"the video 'lost' .* is in 0 \(f1\) and 1 \(f2\)"):
        check_leaks([real, *fakes], {"r": 0, "f0": 0, "f1": 0, "f2": 1})
    check_leaks([real, *fakes], {"r": 0, "f0": 0, "f1": 1, "f2": 1})


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (1.2, -0.2, 0.0), (0.5, 0.5)])
def test_wrong_shares_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="must be three that sum to 1"):
        assign_splits(dfdc(parts=2), fractions)


def test_wrong_numbers_of_folds_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        assign_folds(dfdc(parts=2), 1)
    with pytest.raises(UsageError, match="no videos to assign"):
        assign_folds([], 2)


def test_folds_come_back_from_their_file(tmp_path: Path) -> None:
    videos = celebdf(8)
    folds = assign_folds(videos, 2, crossing="left_out")
    splits = assign_splits(videos, (0.5, 0.0, 0.5), crossing="left_out")
    assert 0 < len(folds) < len(videos)
    write_folds(f"{tmp_path}/folds.parquet", videos, folds=folds, splits=splits)
    assert read_folds(f"{tmp_path}/folds.parquet") == (folds, splits)
    write_folds(f"{tmp_path}/folds.parquet", videos, splits=splits)
    assert read_folds(f"{tmp_path}/folds.parquet") == ({}, splits)


def test_what_holds_no_folds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folds.parquet").write_text("text")
    with pytest.raises(UsageError, match="holds no folds"):
        read_folds(f"{tmp_path}/folds.parquet")
    with pytest.raises(StorageError, match="gone"):
        read_folds(f"{tmp_path}/gone.parquet")


def test_real_fakes_go_with_their_originals(shared_dir: Path) -> None:
    videos = list(datasets.read(str(shared_dir / "videos/ffpp")).videos)
    folds = assign_folds(videos, 3)
    check_leaks(videos, folds)
    assert folds["Deepfakes/c23/519_515"] == folds["youtube/c23/519"]
    assert set(folds.values()) == {0, 1, 2}
