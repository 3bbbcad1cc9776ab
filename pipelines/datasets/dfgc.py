"""DFGC-VRA 2023: face swaps with mean opinion scores, in the partitions C1, C2 and C3.

    <anywhere>/C1/1-2-3-submit-74734.mp4        group 1, person 2, clip 3, swapped by submission 74734
    label/train_set.csv                         columns file (C1/...mp4) and mos
    label/Test1-labels.txt                      lines `C1/...mp4, mos`, with or without a header

Each group has two people whose faces are swapped with one another; the groups' clips were published without swaps as
the resource of DFGC-2022 (see its README and arXiv:2206.15138). Submission 00000 is the organisers' own swap.
"""

import contextlib
import math
import posixpath
import re
from dataclasses import dataclass, field

from pipelines.datasets.tree import Listing, Tree, note
from unmask.errors import UsageError
from unmask.manifest import SPLITS, Video, video_id

__all__ = ["matches", "read"]

_PATH = re.compile(r"(?:^|/)(?P<part>C[123])/(?P<file>[^/]+)$")
_NAME = re.compile(r"(?P<group>\d+)-(?P<person>\d+)-(?P<clip>\d+)-submit-(?P<method>\w+)")
_FILE_COLUMNS = ("file", "filename", "name", "video")


@dataclass
class _Said:
    """What the tables say of a file."""

    mos: float | None = None
    split: str | None = None
    tables: list[str] = field(default_factory=list)


def matches(tree: Tree) -> bool:
    """Whether a partition's folder holds videos named as DFGC's, or a table here has opinion scores of them."""
    inside = [place["file"] for path in tree.videos if (place := _PATH.search(f"{tree.name}/{path}"))]
    return any(_NAME.fullmatch(video_id(file)) for file in inside) or (bool(inside) and bool(_tables(tree)))


def read(tree: Tree) -> Listing:
    """List the videos of C1 to C3; ids are such as `C1/1-2-3-submit-74734`, all labelled fake.

    The official split is taken from the names of the tables: `train*`, `val*`, `test*`.

    Raises:
        UsageError: Two tables contradict each other.
    """
    said = _tables(tree)
    videos, outside, silent = [], [], []
    for path in tree.videos:
        place = _PATH.search(f"{tree.name}/{path}")
        if place is None:
            outside.append(path)
            continue
        key = f"{place['part']}/{place['file']}"
        # Tables of single partitions name files without their folder.
        entry = said.pop(key, None) or said.pop(place["file"], None) or _Said()
        videos.append(_video(tree.uri_of(path), place, entry))
        if entry.mos is None:
            silent.append(key)
    notes = (
        *note("outside C1, C2 and C3, left out", outside),
        *note("without a mean opinion score in any table", silent),
        *note("in a table and absent on disk, left out", said),
    )
    return Listing(dataset="dfgc", uri=tree.uri, videos=sorted(videos, key=lambda v: v.video), notes=notes)


def _tables(tree: Tree) -> dict[str, _Said]:
    said: dict[str, _Said] = {}
    for path in tree.descriptions:
        if not path.endswith((".csv", ".txt")):
            continue
        stem = posixpath.basename(path).lower()
        split = next((s for s in SPLITS if stem.startswith(s)), None)
        for name, mos in _scores(tree.rows(path)):
            entry = said.setdefault(name, _Said())
            if None not in (mos, entry.mos) and mos != entry.mos:
                raise UsageError(
                    f"{tree.uri_of(path)} gives {name} the mos {mos}, {entry.tables[0]} gives {entry.mos}; remove one."
                )
            if None not in (split, entry.split) and split != entry.split:
                raise UsageError(f"{tree.uri_of(path)} and {entry.tables[0]} put {name} into two splits; remove one.")
            entry.mos, entry.split = mos if entry.mos is None else entry.mos, entry.split or split
            entry.tables.append(path)
    return said


def _scores(rows: list[list[str]]) -> list[tuple[str, float | None]]:
    """Names and scores of a table; empty where it is no such table. Lists of names alone give no score."""
    if not rows:
        return []
    header = [name.lower() for name in rows[0]]
    file_column = next((header.index(c) for c in _FILE_COLUMNS if c in header), None)
    if file_column is not None and "mos" in header:
        mos_column, body = header.index("mos"), rows[1:]
    elif file_column is None and rows[0][0].lower().endswith(".mp4"):
        file_column, mos_column, body = 0, 1, rows
    else:
        return []
    return [
        (_key(row[file_column]), _number(row[mos_column] if len(row) > mos_column else ""))
        for row in body
        if len(row) > file_column and row[file_column].lower().endswith(".mp4")
    ]


def _key(name: str) -> str:
    return "/".join(name.replace("\\", "/").split("/")[-2:])


def _number(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        return value if math.isfinite(value := float(text)) else None
    return None


def _video(uri: str, place: re.Match[str], said: _Said) -> Video:
    stem = video_id(place["file"])
    name = _NAME.fullmatch(stem)
    return Video(
        video=f"{place['part']}/{stem}",
        uri=uri,
        label=1,
        mos=said.mos,
        method=name["method"] if name else None,
        identity=(f"{name['group']}-1", f"{name['group']}-2") if name else (),
        source=f"{name['group']}-{name['person']}-{name['clip']}" if name else None,
        split=said.split,
        part=place["part"],
    )
