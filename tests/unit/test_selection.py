"""Which videos are evaluated, and that nobody can call a look at the training data a test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evaluated import PREPROCESSING, fitted_model, folder, person_clip
from tests.products import Clip
from train.catalogue import Catalogue
from train.ensemble import Ensemble, Member
from train.selection import select
from unmask.checkpoints import Description
from unmask.errors import UsageError
from unmask.folds import write_folds
from unmask.manifest import Video
from unmask.provenance import USED, used_digests
from unmask.storage import Store

SPLITS = ["train", "train", "train", "train", "val", "val", "test", "test", None]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    clips = [person_clip(n, n % 2, split=split) for n, split in enumerate(SPLITS)]
    clips.append(
        Clip(video="real/empty", faces={}, status="empty", columns={"split": "test", "label": 0, "reason": "no_face"})
    )
    clips.append(person_clip(20, 0, split="test", label=None))
    return Catalogue.read([str(folder(tmp_path_factory.mktemp("a") / "data", clips))])


def ensemble(
    *, used: dict[str, Sequence[Video]] | None = None, trained: bool = True, task: str = "detection"
) -> Ensemble:
    model = fitted_model(task=task) if task == "detection" else fitted_model("temporal", task=task)
    provenance: dict[str, Any] = {} if used is None else {USED: used_digests(used)}
    description = Description(
        name="m", version="1", config=model.config, preprocessing=PREPROCESSING, trained=trained, provenance=provenance
    )
    return Ensemble((Member("m", "m.safetensors", model, description, 1.0),))


def named(catalogue: Catalogue, *ids: str) -> list[Video]:
    return [v.about for v in catalogue.videos if v.key.removeprefix("data/") in ids]


def keys(catalogue: Catalogue, split: str | None, who: Ensemble) -> list[str]:
    return [v.key.removeprefix("data/") for v in select(catalogue, split, who).chosen()]


def test_the_test_split_is_the_default(catalogue: Catalogue) -> None:
    selection = select(catalogue, None, ensemble())
    assert [v.key for v in selection.chosen()] == ["data/real/6", "data/fake/7"]
    assert selection.split == "test"
    assert selection.notice is None
    assert selection.left_out == 1
    assert [(u.key, u.reason) for u in selection.unscored] == [("data/real/empty", "no_face")]


def test_everything_is_evaluated_where_there_is_no_split(tmp_path: Path) -> None:
    plain = Catalogue.read([str(folder(tmp_path / "data", [person_clip(n, n % 2) for n in range(4)]))])
    selection = select(plain, None, ensemble())
    assert (selection.split, len(selection.videos)) == ("all", 4)
    with pytest.raises(UsageError, match=r"no video of data .* in the split test, there are no split \(4\)"):
        select(plain, "test", ensemble())


def test_no_dataset_is_left_out_in_silence(catalogue: Catalogue, tmp_path: Path) -> None:
    folder(tmp_path / "plain", [person_clip(n, n % 2) for n in range(30, 33)])
    both = Catalogue.read([str(catalogue.stores["data"].local_path()), str(tmp_path / "plain")])
    selection = select(both, None, ensemble())
    assert selection.split == "test or all"
    chosen = [v.key for v in selection.chosen()]
    assert chosen == ["data/real/6", "data/fake/7", "plain/real/30", "plain/fake/31", "plain/real/32"]
    with pytest.raises(UsageError, match="no video of plain"):
        select(both, "test", ensemble())


def test_an_unknown_split_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(UsageError, match="--split is one of test, val"):
        select(catalogue, "tset", ensemble())


def test_folds_decide_where_there_are_any(tmp_path: Path) -> None:
    clips = [person_clip(n, n % 2, split="train") for n in range(4)]
    place = folder(tmp_path / "data", clips)
    videos = [Video(video=clip.video, uri="/x") for clip in clips]
    write_folds(Store(place).uri_of("folds.parquet"), videos, splits={"real/2": "test", "fake/3": "test"})
    assert keys(Catalogue.read([str(place)]), "test", ensemble()) == ["real/2", "fake/3"]


def test_videos_that_a_model_was_made_from_are_no_test(catalogue: Catalogue) -> None:
    used = {"train": named(catalogue, "real/0", "real/6"), "val": named(catalogue, "fake/5")}
    with pytest.raises(UsageError, match=r"1 of 3 videos are no test") as refusal:
        select(catalogue, "test", ensemble(used=used))
    assert "data/real/6 (it, or a fake of it, was used in training)" in refusal.value.message
    assert "--split unseen" in refusal.value.message
    with pytest.raises(UsageError, match=r"no test of m\.safetensors"):
        select(catalogue, "all", ensemble(used=used))
    assert keys(catalogue, "unseen", ensemble(used=used)) == [
        "fake/1",
        "real/2",
        "fake/3",
        "real/4",
        "fake/7",
        "real/8",
    ]
    assert keys(catalogue, "test", ensemble(used={"train": named(catalogue, "real/0")})) == ["real/6", "fake/7"]


def test_splits_that_training_dealt_out_are_known_from_the_checkpoint(tmp_path: Path) -> None:
    plain = Catalogue.read([str(folder(tmp_path / "plain", [person_clip(n, n % 2) for n in range(6)]))])
    used = {"train": [plain.videos[n].about for n in (0, 1, 2)], "val": [plain.videos[3].about]}
    who = ensemble(used=used)
    by_split = {s: [v.key for v in select(plain, s, who).chosen()] for s in (None, "test", "val", "train", "unseen")}
    assert by_split[None] == by_split["test"] == by_split["unseen"] == ["plain/real/4", "plain/fake/5"]
    assert by_split["val"] == ["plain/fake/3"]
    assert by_split["train"] == ["plain/real/0", "plain/fake/1", "plain/real/2"]
    assert "those that training dealt out" in " ".join(select(plain, None, who).caveats)
    assert select(plain, None, ensemble()).split == "all"


def test_people_in_other_videos_are_no_test_either(catalogue: Catalogue) -> None:
    elsewhere = Video(video="data/other/1", uri="/x", identity=("data/person 7",))
    with pytest.raises(UsageError, match="the person data/person 7 was used in training"):
        select(catalogue, "test", ensemble(used={"train": [elsewhere]}))


@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_of_training_may_be_looked_at_as_such(catalogue: Catalogue, split: str) -> None:
    selection = select(catalogue, split, ensemble(used={"train": [v.about for v in catalogue.videos]}))
    assert len(selection.videos) == {"train": 4, "val": 2}[split]
    assert f"This is no test: these videos are the split {split}" in (selection.notice or "")


def test_nothing_is_left_where_all_was_used(catalogue: Catalogue) -> None:
    with pytest.raises(UsageError, match="nothing is left"):
        select(catalogue, "unseen", ensemble(used={"train": [v.about for v in catalogue.videos]}))


def test_silence_about_training_is_said(catalogue: Catalogue) -> None:
    (caveat,) = select(catalogue, "test", ensemble()).caveats
    assert "does not say what it was trained on" in caveat
    assert not select(catalogue, "test", ensemble(trained=False)).caveats
    with pytest.raises(UsageError, match="nobody can tell what it has not seen"):
        select(catalogue, "unseen", ensemble())


def test_videos_without_a_truth_cannot_be_evaluated(catalogue: Catalogue) -> None:
    with pytest.raises(UsageError, match="has an opinion score"):
        select(catalogue, "test", ensemble(task="mos"))
