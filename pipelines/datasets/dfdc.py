"""The Deepfake Detection Challenge: `dfdc_train_part_*/metadata.json`, and the flat folders of Kaggle's test sets.

A `metadata.json` beside the videos maps a file name to `{"label": "FAKE", "split": "train", "original": "x.mp4"}`, or
in the test set's release to `{"is_fake": 1}`. A `labels.csv` there has the columns filename and label. Nobody says who
is in a video: the original's id stands for the person, so that a fake groups with its original.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.datasets.tree import Listing, Tree, note, parse_label
from unmask.errors import UsageError
from unmask.manifest import Video, video_id

__all__ = ["matches", "read"]

_PART = re.compile(r"(?:^|_)part_?(\d+)$")
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass
class _Entry:
    label: int | None = None
    original: str | None = None
    split: str | None = None


@dataclass
class _Folder:
    """What the descriptions beside the videos say of them, by file name."""

    path: str
    entries: dict[str, _Entry] = field(default_factory=dict)


def matches(tree: Tree) -> bool:
    """Whether a folder has a description of DFDC beside its videos."""
    return any(_description(tree, path) for path in _descriptions(tree))


def read(tree: Tree) -> Listing:
    """List the videos that are described and present.

    Raises:
        UsageError: A description cannot be read, or two contradict each other.
    """
    folders: dict[str, _Folder] = {}
    for path in _descriptions(tree):
        parent = posixpath.dirname(path)
        folder = folders.setdefault(parent, _Folder(parent))
        _merge(folder, _description(tree, path), tree.uri_of(path))
    listed = {posixpath.join(folder.path, name): folder for folder in folders.values() for name in folder.entries}
    there = set(tree.videos)
    videos = [_video(tree, folder, path) for path, folder in listed.items() if path in there]
    notes = (
        *note("listed and absent on disk, left out", listed.keys() - there),
        *note("on disk and not listed beside them, left out", there - listed.keys()),
        *note("fakes whose original is not on disk", _orphans(videos)),
    )
    return Listing(dataset="dfdc", uri=tree.uri, videos=sorted(videos, key=lambda v: v.video), notes=notes)


def _descriptions(tree: Tree) -> Iterator[str]:
    """Both kinds, metadata first: the sort is alphabetical, and labels.csv only adds to metadata.json."""
    for name in ("metadata.json", "labels.csv"):
        yield from (p for p in tree.descriptions if posixpath.basename(p) == name)


def _description(tree: Tree, path: str) -> dict[str, _Entry]:
    if path.endswith(".csv"):
        header, *rows = tree.rows(path) or [[]]
        columns = [name.lower() for name in header]
        if not {"filename", "label"} <= set(columns):
            return {}
        records = (dict(zip(columns, row, strict=False)) for row in rows)
        return {name: _entry(r, f"{tree.uri_of(path)}, {name}") for r in records if (name := r.get("filename"))}
    content = tree.json(path)
    if not isinstance(content, dict):
        return {}
    return {
        name: _entry(said, f"{tree.uri_of(path)}, {name}")
        for name, said in content.items()
        if isinstance(said, dict) and ("label" in said or "is_fake" in said)
    }


def _entry(said: dict[str, Any], where: str) -> _Entry:
    try:
        label = parse_label(said.get("label", said.get("is_fake")))
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}") from None
    # A real video's "original" is null, in some releases the text "NA" or nothing.
    original = str(said.get("original") or "")
    return _Entry(
        label=label,
        original=video_id(original) if original not in {"", "NA", "nan"} else None,
        split=_SPLITS.get(str(said.get("split", "")).lower()),
    )


def _merge(folder: _Folder, found: dict[str, _Entry], where: str) -> None:
    for name, entry in found.items():
        known = folder.entries.setdefault(name, entry)
        if None not in (known.label, entry.label) and known.label != entry.label:
            raise UsageError(
                f"{where} says label {entry.label} of {name} and metadata.json {known.label}; correct one."
            )
        known.label = entry.label if known.label is None else known.label


def _video(tree: Tree, folder: _Folder, path: str) -> Video:
    entry = folder.entries[posixpath.basename(path)]
    name = video_id(posixpath.basename(path))
    parent = posixpath.basename(folder.path) or tree.name
    numbered = _PART.search(parent)
    person = entry.original or (None if entry.label == 1 else name)
    return Video(
        video=name,
        uri=tree.uri_of(path),
        label=entry.label,
        identity=(person,) if person else (),
        source=entry.original,
        split=entry.split,
        part=numbered[1] if numbered else posixpath.basename(folder.path) or None,
    )


def _orphans(videos: list[Video]) -> list[str]:
    there = {v.video for v in videos}
    return [v.video for v in videos if v.source and v.source not in there]
