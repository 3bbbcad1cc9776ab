"""What a checkpoint was made from can be asked of it, and its names cannot be read out of it."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from unmask.errors import UsageError
from unmask.manifest import Video
from unmask.provenance import USED, has_digests, overlap, used_digests, used_for


def video(name: str, *people: str, source: str | None = None, dataset: str = "ff") -> Video:
    return Video(
        video=f"{dataset}/{name}",
        uri=f"/data/{name}.mp4",
        identity=tuple(f"{dataset}/{p}" for p in people),
        source=f"{dataset}/{source}" if source else None,
    )


TRAIN = [video("original/000", "000"), video("fake/000_003", "000", "003", source="original/000"), video("original/7")]
VAL = [video("original/100", "100")]


def provenance(train: Sequence[Video] = TRAIN, val: Sequence[Video] = VAL) -> dict[str, Any]:
    plain = {USED: used_digests({"train": train, "val": val})}
    read: dict[str, Any] = json.loads(json.dumps(plain))  # as it travels in a checkpoint
    return read


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (video("original/000", "999"), "it, or a fake of it, was used in training"),
        (video("other/100_7", "100", "7"), "the person ff/100 was used in validation"),
        (video("late/9", "003"), "the person ff/003 was used in training"),
        (video("fake/of/000", source="original/000"), "its original was used in training"),
        (video("original/003", "555"), None),
        (video("original/200", "200"), None),
        (video("original/000", "000", dataset="celeb"), None),  # another dataset's
    ],
)
def test_videos_people_and_sources_are_found(asked: Video, why: str | None) -> None:
    # Others beside it, so that one name in common is a chance.
    others = [video(f"new/{n}", f"new {n}") for n in range(60)]
    found = overlap(provenance(), [*others, asked])
    assert found.videos == 61
    assert bool(found) == (why is not None)
    assert found.seen == ({} if why is None else {60: why})


def test_an_original_of_a_fake_that_was_used_is_known_too() -> None:
    only_fake = provenance([video("fake/5_6", source="original/5")], [])
    assert overlap(only_fake, [video("original/5")])


def test_one_dataset_under_two_names_is_recognised() -> None:
    again = [video("original/000", dataset="ff-large"), video("original/7", dataset="ff-large"), video("x/1")]
    found = overlap(provenance(), again)
    assert set(found.seen) == {0, 1}
    assert found.seen[0] == "a video of that name was used in training"


def test_names_cannot_be_read_out_of_the_digests() -> None:
    text = json.dumps(provenance())
    assert "original" not in text
    assert "003" not in text
    split = provenance()[USED]["train"]
    assert (split["videos"], split["people"]) == (3, 2)
    assert provenance() == provenance(list(reversed(TRAIN)))


def test_checkpoints_that_do_not_say_overlap_with_nothing() -> None:
    assert not has_digests({})
    assert not has_digests({USED: {}})
    assert has_digests(provenance())
    assert not overlap({"weights": "timm"}, TRAIN)


@pytest.mark.parametrize("damage", [{"video_digests": "*"}, {"people_digests": "AAAA"}, {"name_digests": 7}])
def test_damaged_digests_are_no_permission(damage: dict[str, Any]) -> None:
    damaged = provenance()
    damaged[USED]["val"] |= damage
    with pytest.raises(UsageError, match="damaged"):
        overlap(damaged, TRAIN)
    del damaged[USED]["val"]["name_digests"]
    with pytest.raises(UsageError, match="damaged"):
        overlap(damaged, TRAIN)


def test_what_a_video_itself_was_used_for() -> None:
    asked = [*TRAIN, *VAL, video("original/200", "000"), video("original/000", dataset="celeb")]
    assert used_for(provenance(), asked) == ["train", "train", "train", "val", None, None]
    only_fake = provenance([video("fake/5_6", source="original/5")], [])
    assert used_for(only_fake, [video("original/5")]) == [None]
    assert used_for({}, VAL) == [None]
