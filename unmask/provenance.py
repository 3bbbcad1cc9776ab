"""Which videos and people a model was made from, in a form that a checkpoint can carry: digests, no names.

A checkpoint's provenance holds `used_digests(...)` under the key `used`, by split: those trained on, and those by which
the epoch, the temperature and the threshold were chosen. `overlap` finds videos that a test would have to leave out:
the video itself, its original or a fake of it, or a person in it was used. Ids carry the name of their dataset (the
folder that it was preprocessed into), so that person 003 of one is not person 003 of another.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.errors import UsageError
from unmask.manifest import Video

__all__ = ["USED", "Overlap", "has_digests", "joined", "overlap", "used_digests", "used_for"]

USED = "used"
"""The key in a checkpoint's provenance."""
# One dataset may lie in two folders of different names. So many of the videos evaluated must be called like videos
# that were used (beside the dataset's name) before they are taken for the same: chance can make one name twice.
_SHARE, _LEAST = 0.05, 2

Digests = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What a model has seen of some videos.

    Args:
        videos: How many there are.
        seen: By position: why the video is no test, as the end of a sentence.
    """

    videos: int
    seen: Mapping[int, str]

    def __bool__(self) -> bool:
        return bool(self.seen)


def used_digests(splits: Mapping[str, Iterable[Video]]) -> dict[str, dict[str, Any]]:
    """What goes into a checkpoint's provenance under `USED`.

    Args:
        splits: The videos used, by what for: `train`, `val`. Their ids and people carry the dataset's name:
            `<dataset>/<id>`.

    Returns:
        Of each split: numbers of videos and people; sorted 64-bit digests (BLAKE2b) of videos and their originals,
        of people, and of videos without their dataset's name, in base64. Some 22 bytes a video.
    """
    found = {}
    for split, videos in splits.items():
        listed = list(videos)
        people = {name for video in listed for name in video.identity}
        found[split] = {
            "videos": len(listed),
            "people": len(people),
            "video_digests": _packed({name for video in listed for name in _family(video)}),
            "people_digests": _packed(people),
            "name_digests": _packed({_bare(video.video) for video in listed}),
        }
    return found


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What several models were made from, as one: a student has seen through its teachers what they have seen.

    Args:
        parts: As `used_digests` gives them. Numbers are those of the first, digests are those of all.

    Raises:
        UsageError: Digests are damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(split for part in parts for split in part):
        own = [part[split] for part in parts if split in part]
        kinds = ("video_digests", "people_digests", "name_digests")
        digests = {kind: set().union(*(_unpacked(each, kind) for each in own)) for kind in kinds}
        found[split] = {**own[0], **{kind: _encoded(each) for kind, each in digests.items()}}
    return found


def has_digests(provenance: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says what it was made from."""
    return isinstance(provenance.get(USED), Mapping) and bool(provenance[USED])


def overlap(provenance: Mapping[str, Any], videos: Sequence[Video]) -> Overlap:
    """Which of some videos a model was trained on or chosen by.

    Args:
        provenance: Of its checkpoint. One without digests overlaps with nothing; see `has_digests`.
        videos: With ids and people as in `used_digests`.

    Raises:
        UsageError: The digests are damaged.
    """
    seen: dict[int, str] = {}
    if not has_digests(provenance):
        return Overlap(len(videos), seen)
    for split, digests in provenance[USED].items():
        known, people, names = (_unpacked(digests, f"{kind}_digests") for kind in ("video", "people", "name"))
        namesakes = {n for n, video in enumerate(videos) if _digest(_bare(video.video)) in names}
        same_data = len(namesakes) >= max(_LEAST, _SHARE * len(videos))
        for n, video in enumerate(videos):
            why = _why(video, known, people)
            if why is None and same_data and n in namesakes:
                why = "a video of that name"
            if why is not None:
                seen.setdefault(n, f"{why} was used in {_PURPOSES.get(split, split)}")
    return Overlap(len(videos), dict(sorted(seen.items())))


def used_for(provenance: Mapping[str, Any], videos: Sequence[Video]) -> list[str | None]:
    """What each of some videos itself was used for: `train`, `val`, or None where it was not, or nobody says.

    Raises:
        UsageError: The digests are damaged.
    """
    found: list[str | None] = [None] * len(videos)
    for split, digests in provenance[USED].items() if has_digests(provenance) else ():
        known, names = (_unpacked(digests, f"{kind}_digests") for kind in ("video", "name"))
        for n, video in enumerate(videos):
            # Originals are among the videos whether or not they were used; the names are of those that were.
            if _digest(video.video) in known and _digest(_bare(video.video)) in names:
                found[n] = split
    return found


_PURPOSES = {"train": "training", "val": "validation"}


def _why(video: Video, known: set[int], people: set[int]) -> str | None:
    if _digest(video.video) in known:
        return "it, or a fake of it,"
    if video.source and _digest(video.source) in known:
        return "its original"
    person = next((name for name in video.identity if _digest(name) in people), None)
    return None if person is None else f"the person {person}"


def _family(video: Video) -> tuple[str, ...]:
    return (video.video, video.source) if video.source else (video.video,)


def _bare(video: str) -> str:
    """The id without the dataset's name."""
    return video.partition("/")[2] or video


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _packed(names: set[str]) -> str:
    return _encoded({_digest(name) for name in names})


def _encoded(digests: set[int]) -> str:
    return base64.b64encode(np.array(sorted(digests), "<u8").tobytes()).decode("ascii")


def _unpacked(digests: Any, name: str) -> set[int]:
    try:
        data = base64.b64decode(digests[name], validate=True)
        return set(np.frombuffer(data, "<u8").tolist())
    except (TypeError, KeyError, ValueError, binascii.Error) as error:
        raise UsageError(f"a checkpoint's list of the videos it was made from is damaged ({error})") from None
