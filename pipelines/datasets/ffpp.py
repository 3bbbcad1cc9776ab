"""FaceForensics++ with the DeepFakeDetection videos that it carries.

    original_sequences/{youtube,actors}/<compression>/videos/*.mp4
    manipulated_sequences/<method>/<compression>/videos/*.mp4
    splits/{train,val,test}.json        lists of pairs of YouTube ids; the official split, when present

A fake's name tells whose face is in whose video: `519_515` is the video 519 with the face of 515, and
`01_02__outside_talking_still_laughing__YVGY8LOK` actor 01's scene with the face of actor 02.
"""

import posixpath
import re

from pipelines.datasets.tree import Listing, Tree, note
from unmask.errors import UsageError
from unmask.manifest import SPLITS, Video, video_id

__all__ = ["matches", "read"]

# Releases before 2019 have no folder between original_sequences and the compression.
_PATH = re.compile(
    r"(?:^|/)(?P<kind>original|manipulated)_sequences/(?:(?P<group>[^/]+)/)?"
    r"(?P<compression>raw|c0|c23|c40)/videos/(?P<file>[^/]+)$"
)
_YOUTUBE_PAIR = re.compile(r"(\d+)_(\d+)")
_ACTOR = re.compile(r"(\d+)__.+")
_ACTOR_PAIR = re.compile(r"(\d+)_(\d+)__(.+)__[0-9A-Z]+")


def matches(tree: Tree) -> bool:
    """Whether a video lies where FaceForensics++ has them."""
    return any(_PATH.search(f"{tree.name}/{path}") for path in tree.videos)


def read(tree: Tree) -> Listing:
    """List originals and fakes; ids are `<method>/<compression>/<name>`, for originals `youtube/c23/519`.

    Raises:
        UsageError: The lists of the official split cannot be read.
    """
    splits, without = _splits(tree)
    videos, outside, nameless = [], [], []
    for path in tree.videos:
        place = _PATH.search(f"{tree.name}/{path}")
        if place is None:
            outside.append(path)
            continue
        video = _video(tree.uri_of(path), place, splits)
        videos.append(video)
        if not video.identity:
            nameless.append(path)
    there = {v.video for v in videos}
    notes = (
        *note("outside the folders of FaceForensics++, left out", outside),
        *note("whose name tells neither person nor pair", nameless),
        *note("fakes whose original is not on disk", (v.video for v in videos if v.source and v.source not in there)),
        *note("lists of the official split that are not there", without),
    )
    return Listing(dataset="ffpp", uri=tree.uri, videos=sorted(videos, key=lambda v: v.video), notes=notes)


def _splits(tree: Tree) -> tuple[dict[str, str], list[str]]:
    """The split of each YouTube id, and the lists that are missing."""
    found: dict[str, str] = {}
    without = []
    for split in SPLITS:
        wanted = f"splits/{split}.json"
        paths = [p for p in tree.descriptions if f"{tree.name}/{p}".endswith(f"/{wanted}")]
        if not paths:
            without.append(wanted)
        for path in paths:
            pairs = tree.json(path)
            try:
                found |= {str(name): split for pair in pairs for name in _two(pair)}
            except (TypeError, ValueError):
                raise UsageError(
                    f'{tree.uri_of(path)} must be a list of pairs such as ["071", "054"]; download it again.'
                ) from None
    return found, without


def _two(pair: list[str]) -> tuple[str, str]:
    first, second = pair
    return first, second


def _video(uri: str, place: re.Match[str], splits: dict[str, str]) -> Video:
    name, compression = video_id(place["file"]), place["compression"]
    group = place["group"] or "youtube"
    if place["kind"] == "original":
        actor = _ACTOR.fullmatch(name)
        identity: tuple[str, ...] = (actor[1],) if actor else (name,) if name.isdigit() else ()
        return Video(
            video=posixpath.join(group, compression, name),
            uri=uri,
            label=0,
            compression=compression,
            identity=identity,
            split=splits.get(name),
        )
    people, original = _pair(name)
    of_both = {splits.get(person) for person in people}
    return Video(
        video=posixpath.join(group, compression, name),
        uri=uri,
        label=1,
        method=group,
        compression=compression,
        identity=people,
        source=original and original.format(compression=compression),
        split=of_both.pop() if len(of_both) == 1 else None,
    )


def _pair(name: str) -> tuple[tuple[str, ...], str | None]:
    """The two people of a fake, the target first, and a pattern of its original's id."""
    if pair := _YOUTUBE_PAIR.fullmatch(name):
        return (pair[1], pair[2]), f"youtube/{{compression}}/{pair[1]}"
    if pair := _ACTOR_PAIR.fullmatch(name):
        return (pair[1], pair[2]), f"actors/{{compression}}/{pair[1]}__{pair[3]}"
    return (), None
