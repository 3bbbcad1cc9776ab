"""Who is trained on, who is validated on, who is left; and that nobody is on two sides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.products import Clip, finished_run
from train.catalogue import Catalogue
from train.config import TrainConfig, overridden
from train.recipes import recipe
from train.splits import Splits, official_splits, splits_of
from unmask.errors import UsageError
from unmask.folds import FOLDS_FILE, write_folds
from unmask.manifest import Video
from unmask.storage import Store

Named = dict[str, set[str]]


def configured(*settings: str, name: str = "dfdc-b5") -> TrainConfig:
    return overridden(recipe(name), settings)


def catalogued(folder: Path, clips: Sequence[Clip], **files: Any) -> Catalogue:
    """A run called `d`, and what lies in its `folds.parquet`."""
    store = Store(folder / "d")
    finished_run(store, clips, side_px=16)
    if files:
        videos = [Video(video=clip.video, uri=clip.video) for clip in clips]
        write_folds(store.uri_of(FOLDS_FILE), videos, **files)
    return Catalogue.read([str(folder / "d")])


def named(catalogue: Catalogue, splits: Splits) -> Named:
    return {name: {catalogue.videos[n].about.video for n in getattr(splits, name)} for name in ("train", "val", "test")}


def person(number: int, **columns: Any) -> list[Clip]:
    """A person's real clip, and a fake made of it."""
    about = {"identity": [f"p{number}"], **columns}
    return [
        Clip(video=f"r{number}", columns={"label": 0, **about}),
        Clip(video=f"f{number}", columns={"label": 1, "source": f"r{number}", **about}),
    ]


def people(count: int, **columns: Any) -> list[Clip]:
    return [clip for n in range(count) for clip in person(n, **columns)]


def check_apart(found: Named) -> None:
    """A person's two videos are in the same split, and every video is in one."""
    every = [video for videos in found.values() for video in videos]
    assert len(every) == len(set(every))
    for videos in found.values():
        assert {v.replace("/f", "/r") for v in videos} == {v.replace("/f", "/r") for v in videos if "/r" in v}


def test_people_are_dealt_out_where_there_is_no_split(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, people(20))
    splits = splits_of(catalogue, configured(), 0)
    found = named(catalogue, splits)
    assert {k: len(v) for k, v in found.items()} == {"train": 28, "val": 4, "test": 8}
    check_apart(found)
    assert "people dealt out" in splits.describe()
    assert "28 videos to train, 4 to validate, 8 left" in splits.describe()


def test_every_seed_leaves_the_same_people_for_the_test(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, people(20))
    assert splits_of(catalogue, configured(), 0) == splits_of(catalogue, configured(), 4)


def test_fractions_are_shares_of_the_people(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, people(10))
    found = named(catalogue, splits_of(catalogue, configured("fractions=[0.5,0.5,0]"), 0))
    assert [len(v) for v in found.values()] == [10, 10, 0]
    check_apart(found)


def official(count: int = 6) -> list[Clip]:
    names = ["train"] * (count - 2) + ["val", "test"]
    return [clip for n in range(count) for clip in person(n, split=names[n])]


def test_the_datasets_own_split_is_kept(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, official())
    splits = splits_of(catalogue, configured(), 0)
    assert named(catalogue, splits) == {
        "train": {f"d/{k}{n}" for n in range(4) for k in "rf"},
        "val": {"d/r4", "d/f4"},
        "test": {"d/r5", "d/f5"},
    }
    assert splits.how == "official splits"
    assert splits_of(catalogue, configured("split=official"), 0) == splits


def test_it_can_be_passed_over(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, official(10))
    splits = splits_of(catalogue, configured("split=identity"), 0)
    assert splits.how == "people dealt out"
    assert len(splits.train) == 14
    assert named(catalogue, splits)["val"] != {"d/r8", "d/f8"}


def test_folds_parquet_goes_before_the_datasets_own(tmp_path: Path) -> None:
    own = {"r0": "val", "f0": "val", "r1": "test", "f1": "test", "r2": "train", "f2": "train"}
    catalogue = catalogued(tmp_path, official(), splits=own)
    found = named(catalogue, splits_of(catalogue, configured(), 0))
    assert found["val"] == {"d/r0", "d/f0"} | {"d/r4", "d/f4"}  # the others stay where they were
    assert found["test"] == {"d/r1", "d/f1"} | {"d/r5", "d/f5"}
    assert found["train"] == {f"d/{k}{n}" for n in (2, 3) for k in "rf"}
    assert official_splits(catalogue)["d/r0"] == "val"


def test_videos_without_an_official_split_are_left_out(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, [*official(), *person(7), *person(8)])
    found = named(catalogue, splits_of(catalogue, configured(), 0))
    assert sum(map(len, found.values())) == 12


def test_validation_is_taken_from_training_where_there_is_none(tmp_path: Path) -> None:
    clips = [clip for n in range(12) for clip in person(n, split="test" if n < 2 else "train")]
    catalogue = catalogued(tmp_path, clips)
    splits = splits_of(catalogue, configured("fractions=[0.6,0.15,0.25]"), 0)
    found = named(catalogue, splits)
    assert found["test"] == {f"d/{k}{n}" for n in range(2) for k in "rf"}
    assert (len(found["train"]), len(found["val"])) == (16, 4)  # 0.6 to 0.15 of ten people
    check_apart(found)
    assert splits.how == "official splits, validation taken from train"


def test_a_fold_may_be_validated_on(tmp_path: Path) -> None:
    folds = {f"{kind}{n}": n % 3 for n in range(6) for kind in "rf"}
    catalogue = catalogued(tmp_path, official(), folds=folds)
    for fold in range(3):
        splits = splits_of(catalogue, configured(f"val_fold={fold}"), 0)
        found = named(catalogue, splits)
        assert found["val"] == {f"d/{kind}{n}" for n in range(fold, 6, 3) for kind in "rf"}
        assert found["train"] | found["val"] == {f"d/{kind}{n}" for n in range(6) for kind in "rf"}
        assert found["test"] == set()
        assert splits.how == f"validation is fold {fold}"
    with pytest.raises(UsageError, match="the split val is empty"):
        splits_of(catalogue, configured("val_fold=3"), 0)


def test_a_fold_without_folds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/d has no folds\.parquet: preprocess with --products crops,folds"):
        splits_of(catalogued(tmp_path, people(6)), configured("val_fold=0"), 0)


def test_a_limit_is_of_each_class_over_all_splits(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path, people(20))
    splits = splits_of(catalogue, configured("max_videos_per_class=10"), 0)
    every = named(catalogue, splits)
    videos = set().union(*every.values())
    assert sum("/r" in v for v in videos) == sum("/f" in v for v in videos) == 10
    whole = named(catalogue, splits_of(catalogue, configured(), 0))
    assert all(every[name] <= whole[name] for name in every)  # drawn after the people were dealt out
    assert splits_of(catalogue, configured("max_videos_per_class=10"), 0) == splits
    assert splits_of(catalogue, configured("max_videos_per_class=10"), 1) != splits
    assert splits_of(catalogue, configured("max_videos_per_class=99"), 0) == splits_of(catalogue, configured(), 0)


def test_opinion_scores_need_no_label(tmp_path: Path) -> None:
    clips = [Clip(video=f"v{n}", columns={"mos": 1.0 + n / 5, "identity": [f"p{n}"]}) for n in range(20)]
    catalogue = catalogued(tmp_path, [*clips, *person(50)])
    found = named(catalogue, splits_of(catalogue, configured(name="dfgc-convnext"), 0))
    assert [len(v) for v in found.values()] == [14, 2, 4]
    assert not {"d/r50", "d/f50"} & set().union(*found.values())  # nobody gave these a score
    with pytest.raises(UsageError, match="none of the 40 videos has an opinion score; see the manifest"):
        splits_of(catalogued(tmp_path / "other", people(20)), configured(name="dfgc-convnext"), 0)


def test_unlabelled_videos_are_refused_or_real(tmp_path: Path) -> None:
    clips = [Clip(video=f"u{n}", columns={"identity": [f"q{n}"]}) for n in range(10)]
    catalogue = catalogued(tmp_path, [*clips, *people(10)])
    found = named(catalogue, splits_of(catalogue, configured(), 0))
    assert not any("/u" in v for videos in found.values() for v in videos)
    taken = named(catalogue, splits_of(catalogue, configured("unlabelled=real"), 0))
    assert sum("/u" in v for videos in taken.values() for v in videos) == 10
    alone = catalogued(tmp_path / "alone", clips)
    with pytest.raises(UsageError, match="none of the 10 videos has a label; see the manifest"):
        splits_of(alone, configured(), 0)


def test_self_blends_are_made_of_real_faces_alone(tmp_path: Path) -> None:
    clips = [Clip(video=f"u{n}", columns={"identity": [f"q{n}"]}) for n in range(10)]
    catalogue = catalogued(tmp_path, [*clips, *people(10)])
    found = named(catalogue, splits_of(catalogue, configured(name="selfblend"), 0))
    videos = set().union(*found.values())
    assert videos == {f"d/u{n}" for n in range(10)} | {f"d/r{n}" for n in range(10)}
    strict = named(catalogue, splits_of(catalogue, configured("unlabelled=refuse", name="selfblend"), 0))
    assert set().union(*strict.values()) == {f"d/r{n}" for n in range(10)}
    fakes = catalogued(tmp_path / "fakes", [clip for clip in people(6) if clip.columns["label"]])
    with pytest.raises(UsageError, match="none of the 6 videos has a label that says real"):
        splits_of(fakes, configured(name="selfblend"), 0)


@pytest.mark.parametrize(
    ("clip", "says"),
    [
        (
            Clip(video="again", columns={"label": 0, "identity": ["p0"], "split": "val"}),
            "the person 'd/p0' is in train",
        ),
        (
            Clip(video="made", columns={"label": 1, "source": "r0", "split": "test"}),
            "the video 'd/r0' or what was made",
        ),
    ],
)
def test_who_is_on_two_sides_is_named(tmp_path: Path, clip: Clip, says: str) -> None:
    catalogue = catalogued(tmp_path, [*official(), clip])
    with pytest.raises(UsageError, match=says) as refused:
        splits_of(catalogue, configured(), 0)
    assert "\n" not in refused.value.message
    # Dealt out by identity, they come to one side.
    found = named(catalogue, splits_of(catalogue, configured("split=identity", "fractions=[0.5,0.3,0.2]"), 0))
    assert any({f"d/{clip.video}", "d/r0"} <= videos for videos in found.values())


def test_names_of_two_datasets_are_not_the_same_people(tmp_path: Path) -> None:
    for name, split in (("one", "train"), ("two", "val")):
        finished_run(Store(tmp_path / name), people(3, split=split), side_px=16)
    catalogue = Catalogue.read([str(tmp_path / "one"), str(tmp_path / "two")])
    found = named(catalogue, splits_of(catalogue, configured(), 0))
    assert {v.split("/")[0] for v in found["train"]} == {"one"}
    assert {v.split("/")[0] for v in found["val"]} == {"two"}


@pytest.mark.parametrize(
    ("clips", "settings", "says"),
    [
        (people(6), ["split=official"], "none of the videos has an official split: set data.split=identity"),
        (people(6), ["fractions=[1,0,0]"], "the split val is empty"),
        (
            [*people(4, split="train"), *person(5, split="val")[:1]],
            [],
            "the split val has real videos only .* add the others, set data.fractions, or train on real faces alone",
        ),
        ([*people(4, split="val"), *person(5, split="train")[1:]], [], "the split train has fake videos only"),
    ],
)
def test_what_cannot_be_split_is_said(tmp_path: Path, clips: list[Clip], settings: list[str], says: str) -> None:
    catalogue = catalogued(tmp_path, clips)
    with pytest.raises(UsageError, match=says) as refused:
        splits_of(catalogue, configured(*settings), 0)
    assert "\n" not in refused.value.message
