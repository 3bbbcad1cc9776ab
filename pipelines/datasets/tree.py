"""A dataset's folder, wherever it lies, and what a reader says of it."""

import csv
import io
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import Reason, StorageError, UsageError
from unmask.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from unmask.manifest import Video
from unmask.storage import Store

__all__ = ["Listing", "Note", "Tree", "note", "parse_label", "plain_path"]

_DESCRIPTIONS = frozenset({".json", ".csv", ".txt"})
_KEPT = VIDEO_SUFFIXES | IMAGE_SUFFIXES | _DESCRIPTIONS
# Hidden files, and the mask videos of FaceForensics++, which lie among its fakes.
_LEFT_OUT = re.compile(r"/\.|/manipulated_sequences/(?:[^/]+/)*masks/")


@dataclass(frozen=True, slots=True)
class Note:
    """Something left out or worth knowing of a dataset."""

    text: str
    """What and why, such as `listed in metadata.json and absent on disk`."""
    count: int
    """How many videos, rows or files it concerns."""
    examples: tuple[str, ...] = ()
    """The first few of them."""

    def __str__(self) -> str:
        some = f" ({', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''})"
        return f"{self.text}: {self.count:,}{some if self.examples else ''}"


def note(text: str, names: Iterable[str]) -> tuple[Note, ...]:
    """A note on these names, with three of them as examples; nothing where there are none."""
    found = sorted(names)
    return (Note(text, len(found), tuple(found[:3])),) if found else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The videos of a dataset."""

    dataset: str
    """Which reader read it: dfdc, ffpp, celebdf, dfgc, folder, unlabelled or table."""
    uri: str
    videos: Iterable[Video]
    """Can be gone through more than once. Those of a folder are in the order of their ids, a table's in its order."""
    notes: tuple[Note, ...] = ()
    """What was left out and why, and what is missing."""


def parse_label(text: object) -> int | None:
    """A label as people write it: 0, 1, real, fake, true (a fake) or false, in any case, or nothing.

    Raises:
        UsageError: It is something else.
    """
    plain = "" if text is None else str(text).strip().lower()
    known = {"": None, "0": 0, "0.0": 0, "real": 0, "false": 0, "1": 1, "1.0": 1, "fake": 1, "true": 1}
    if plain not in known:
        raise UsageError(f"label is {text!r}; it must be 0 or REAL, 1 or FAKE, or empty.")
    return known[plain]


class Tree:
    """The videos and descriptions (.json, .csv, .txt) under a folder, by their paths relative to it.

    Hidden files and folders are left out, and FaceForensics++'s mask videos. Links are followed. Where there is no
    video at all, photographs are the videos: clips of one frame each. Beside videos they are thumbnails, and left out.

    Args:
        uri: A path, or the URL of a folder in any file system that `Store` opens.

    Raises:
        UsageError: There is no such folder, or nothing in it.
        StorageError: It cannot be listed.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._store = Store(uri)
        root, ask, query = (
            (plain_path(self._store.local_path()), "", "") if self._store.is_local else uri.partition("?")
        )
        self._root, self._query = root.rstrip("/"), ask + query
        self.name = posixpath.basename(self._root)
        files = sorted(self._files())
        self.videos = [f for f in files if posixpath.splitext(f)[1].lower() in VIDEO_SUFFIXES] or [
            f for f in files if posixpath.splitext(f)[1].lower() in IMAGE_SUFFIXES
        ]
        self.descriptions = [f for f in files if posixpath.splitext(f)[1].lower() in _DESCRIPTIONS]
        if not files:
            raise UsageError(
                f"{self._store.shown} does not exist or holds no videos; check the path.", Reason.EMPTY_FOLDER
            )

    def _files(self) -> Iterator[str]:
        names = self._local_files() if self._store.is_local else iter(self._store.names(deep=True))
        for name in names:
            if posixpath.splitext(name)[1].lower() in _KEPT and not _LEFT_OUT.search(
                f"/{self.name.lstrip('.')}/{name}"
            ):
                yield name

    def _local_files(self) -> Iterator[str]:
        """Through links to folders too, but each folder once, so that a circle of links ends."""

        def fail(error: OSError) -> None:
            raise StorageError(f"{error.filename} cannot be listed ({error.strerror}); check your rights.")

        if not Path(self._root or "/").is_dir():
            raise UsageError(f"{self.uri} is no folder; check the path.", Reason.MISSING_FILE)
        seen: set[str] = set()
        for parent, folders, files in os.walk(self._root or "/", onerror=fail, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            base = Path(parent).relative_to(self._root or "/").as_posix()
            yield from (name if base == "." else f"{base}/{name}" for name in files)

    def uri_of(self, path: str) -> str:
        """The full path or URL of a file under the folder."""
        return f"{self._root}/{path}{self._query}"

    def text(self, path: str) -> str:
        """A file's text.

        Raises:
            UsageError: It is no text in UTF-8.
            StorageError: It cannot be read.
        """
        try:
            return self._store.read(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.uri_of(path)} is no text in UTF-8 ({error}).", Reason.UNREADABLE_FILE) from None

    def json(self, path: str) -> Any:
        """What a JSON file holds.

        Raises:
            UsageError: It cannot be read, or is no JSON.
        """
        try:
            return json.loads(self.text(path))
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{self.uri_of(path)} is no JSON: {error}; download it again.", Reason.UNREADABLE_FILE
            ) from None

    def rows(self, path: str) -> list[list[str]]:
        """The rows of a CSV file, blank ones left out, every value stripped.

        Raises:
            UsageError: It cannot be read.
        """
        try:
            parsed = list(csv.reader(io.StringIO(self.text(path), newline="")))
        except csv.Error as error:
            raise UsageError(f"{self.uri_of(path)} is no CSV: {error}.", Reason.UNREADABLE_FILE) from None
        return [[value.strip() for value in row] for row in parsed if any(value.strip() for value in row)]


def plain_path(path: Path) -> str:
    """Without `..`, and else as it is named: the name of a link to a folder may say what the folder holds."""
    return (path.resolve() if ".." in path.parts else path).as_posix()
