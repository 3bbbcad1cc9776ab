"""Datasets as their authors laid them out, as one kind of manifest.

dfdc        dfdc_train_part_*/metadata.json; or a flat folder with metadata.json or labels.csv
ffpp        FaceForensics++: original_sequences/ and manipulated_sequences/
celebdf     Celeb-DF v1, v2: Celeb-real/, Celeb-synthesis/, YouTube-real/
dfgc        DFGC-VRA 2023: C1/, C2/, C3/ and tables of mean opinion scores
folder      real/ and fake/, at any depth
table       a CSV or Parquet file with a column uri
unlabelled  any folder of videos; only when it is asked for
"""

from collections.abc import Callable
from pathlib import Path

from pipelines.datasets import celebdf, dfdc, dfgc, ffpp, folder, table
from pipelines.datasets.tree import Listing, Note, Tree
from unmask.errors import Reason, UsageError
from unmask.inputs import without_password

__all__ = ["KINDS", "Listing", "Note", "detect", "read"]

_READERS: dict[str, Callable[[Tree], Listing]] = {
    "dfdc": dfdc.read,
    "ffpp": ffpp.read,
    "celebdf": celebdf.read,
    "dfgc": dfgc.read,
    "folder": folder.read,
    "unlabelled": folder.read_unlabelled,
}
_MATCHERS: dict[str, Callable[[Tree], bool]] = {
    "ffpp": ffpp.matches,
    "celebdf": celebdf.matches,
    "dfgc": dfgc.matches,
    "dfdc": dfdc.matches,
}
KINDS = (*_READERS, "table")
"""What `--dataset` may be."""

_LAYOUTS = (
    "DFDC (dfdc_train_part_*/metadata.json, or videos beside a metadata.json or labels.csv), FaceForensics++ "
    "(original_sequences/, manipulated_sequences/), Celeb-DF (Celeb-real/, Celeb-synthesis/), DFGC-VRA (C1/, C2/, "
    "C3/), real/ and fake/ folders, and CSV or Parquet files with a column uri"
)


def detect(uri: str) -> str:
    """The kind of dataset that lies at a path or URL, one of `KINDS`.

    Raises:
        UsageError: There is nothing, nothing known, or two datasets.
    """
    return "table" if _is_table(uri) else _detected(Tree(uri))


def read(uri: str, kind: str | None = None) -> Listing:
    """List the videos of a dataset.

    Args:
        uri: A folder or a table: a path, or the URL of one in any file system that `Store` opens.
        kind: One of `KINDS`; None recognises it by what lies there.

    Raises:
        UsageError: There is nothing or nothing known there, or its descriptions are damaged.
    """
    if kind not in (*KINDS, None):
        raise UsageError(f"--dataset {kind} is not known; choose one of {', '.join(KINDS)}.")
    if kind == "table" or (kind is None and _is_table(uri)):
        return table.read(uri)
    tree = Tree(uri)
    listing = _READERS[kind or _detected(tree)](tree)
    if not listing.videos:
        left_out = "; ".join(str(n) for n in listing.notes) or "none is there"
        raise UsageError(
            f"{without_password(uri)} gives no video as {listing.dataset}: {left_out}; check the path or choose "
            "another --dataset.",
            Reason.EMPTY_FOLDER,
        )
    return listing


def _is_table(uri: str) -> bool:
    """Whether it is called like a table; a folder may be, too."""
    path = uri.partition("?")[0] if "://" in uri else uri
    return path.lower().endswith(table.TABLE_SUFFIXES) and not Path(path).is_dir()


def _detected(tree: Tree) -> str:
    found = [kind for kind, matches in _MATCHERS.items() if matches(tree)]
    if len(found) > 1:
        raise UsageError(f"{tree.uri} holds {' and '.join(found)}; name the folder of one, or choose with --dataset.")
    if not found and folder.matches(tree):
        return "folder"
    if not found:
        raise UsageError(
            f"{tree.uri} is laid out like none of the datasets known: {_LAYOUTS}; choose one with --dataset, which can "
            "also be unlabelled.",
            Reason.EMPTY_FOLDER,
        )
    return found[0]
