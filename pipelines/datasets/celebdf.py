"""Celeb-DF, versions 1 and 2: `Celeb-real`, `Celeb-synthesis`, `YouTube-real` and `List_of_testing_videos.txt`.

`Celeb-synthesis/id0_id1_0003.mp4` is made from `Celeb-real/id0_0003.mp4` with the face of id1. A line of the list is a
label and a path, `1 YouTube-real/00170.mp4`; there, 1 means REAL. What is not listed is for training.
"""

import posixpath
import re

from pipelines.datasets.tree import Listing, Tree, note
from unmask.errors import UsageError
from unmask.manifest import Video, video_id

__all__ = ["matches", "read"]

_LIST = "List_of_testing_videos.txt"
_LABELS = {"Celeb-real": 0, "YouTube-real": 0, "Celeb-synthesis": 1}
_REAL = re.compile(r"(id\d+)_(\d+)")
_FAKE = re.compile(r"(id\d+)_(id\d+)_(\d+)")


def matches(tree: Tree) -> bool:
    """Whether one of Celeb-DF's folders holds videos."""
    return any(posixpath.basename(folder) in _LABELS for folder in _folders(tree))


def read(tree: Tree) -> Listing:
    """List the videos; ids are the paths without suffix, such as `Celeb-synthesis/id0_id1_0003`.

    Raises:
        UsageError: The folder holds Celeb-DF more than once, or the list of test videos is not as its authors wrote it.
    """
    bases = {posixpath.dirname(f) for f in _folders(tree) if posixpath.basename(f) in _LABELS}
    if len(bases) > 1:
        first, second, *_ = sorted(bases)
        raise UsageError(f"{tree.uri} holds Celeb-DF twice, in {first or '.'} and {second}; name one of them.")
    base = bases.pop() if bases else ""
    listed = _test_paths(tree, base)
    videos, outside = [], []
    for path in tree.videos:
        folder, file = posixpath.split(posixpath.relpath(path, base or "."))
        if folder in _LABELS:
            split = None if listed is None else "test" if f"{folder}/{file}" in listed else "train"
            videos.append(_video(tree.uri_of(path), folder, video_id(file), split))
        else:
            outside.append(path)
    there = {v.video for v in videos}
    notes = (
        *note("outside the folders of Celeb-DF, left out", outside),
        *note("listed for testing and absent on disk", (p for p in listed or () if video_id(p) not in there)),
        *note("fakes whose original is not on disk", (v.video for v in videos if v.source and v.source not in there)),
        *note("list that is not there, so no official split is known", () if listed is not None else (_LIST,)),
    )
    return Listing(dataset="celebdf", uri=tree.uri, videos=sorted(videos, key=lambda v: v.video), notes=notes)


def _folders(tree: Tree) -> set[str]:
    return {posixpath.dirname(path) for path in tree.videos}


def _test_paths(tree: Tree, base: str) -> set[str] | None:
    path = posixpath.join(base, _LIST)
    if path not in tree.descriptions:
        return None
    listed = set()
    for number, line in enumerate(tree.text(path).splitlines(), 1):
        if not line.strip():
            continue
        label, _, name = line.strip().partition(" ")
        name = name.strip()
        if posixpath.dirname(name) not in _LABELS or label not in {"0", "1"}:
            raise UsageError(
                f"{tree.uri_of(path)}, line {number} is {line!r}; it should be like '1 YouTube-real/0.mp4'."
            )
        if int(label) == _LABELS[posixpath.dirname(name)]:
            raise UsageError(
                f"{tree.uri_of(path)}, line {number}: {name} has the label {label}, but there 1 means real."
            )
        listed.add(name)
    return listed


def _video(uri: str, folder: str, name: str, split: str | None) -> Video:
    fake, real = _FAKE.fullmatch(name), _REAL.fullmatch(name)
    identity: tuple[str, ...] = ()
    source = None
    if folder == "Celeb-synthesis" and fake:
        identity, source = (fake[1], fake[2]), f"Celeb-real/{fake[1]}_{fake[3]}"
    elif folder == "Celeb-real" and real:
        identity = (real[1],)
    return Video(
        video=f"{folder}/{name}", uri=uri, label=_LABELS[folder], identity=identity, source=source, split=split
    )
