"""A manifest that somebody made: CSV or Parquet, one row a video.

| column | |
|---|---|
| `uri` (or `path`, `filename`) | where the video lies; a relative path starts at the table's folder. Required |
| `video` | unique id; else made from the path: relative to the table's folder if below it, without `.mp4` |
| `label` | 0 or REAL, 1 or FAKE, in any case; may be empty |
| `mos`, `method`, `compression`, `source`, `split`, `part` | as in `unmask.manifest.Video`; may be empty |
| `identity` | the people in it, joined by `;`, or a list in Parquet |

Names of columns may be in any case; other columns are ignored. Rows are read as they are needed, so that a table may
have millions; a CSV's first row of values is row 2, as a spreadsheet counts, a Parquet's first is row 1.
"""

import csv
import io
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.datasets.tree import Listing, Note, parse_label, plain_path
from unmask.errors import Reason, UsageError
from unmask.inputs import without_password
from unmask.manifest import MANIFEST, Video, split_uri, video_id
from unmask.storage import Store

__all__ = ["TABLE_SUFFIXES", "read"]

TABLE_SUFFIXES = (".csv", ".parquet", ".pq")
_ALIASES = {"path": "uri", "filename": "uri"}
_BATCH = 4096


def read(uri: str) -> Listing:
    """List the rows of a table.

    Raises:
        UsageError: It is no table, or has no column of paths. Going through the videos raises one that names the row
            with a bad value.
        StorageError: It does not exist or cannot be read.
    """
    rows = _Rows(uri)
    ignored = tuple(name for name in rows.header if name not in rows.columns.values())
    notes = (Note("columns that Unmask does not know, ignored", len(ignored), ignored[:3]),) if ignored else ()
    return Listing(dataset="table", uri=uri, videos=rows, notes=notes)


class _Rows:
    """The videos of a table, read anew each time they are gone through."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        folder, self._name = split_uri(uri)
        self._is_csv = self._name.lower().endswith(".csv")
        self._store = Store(folder)
        # Paths are put together without the scheme and the query of the table's own URL.
        scheme, mark, rest = ("", "", "") if self._store.is_local else folder.partition("://")
        base, ask, query = rest.partition("?")
        self._scheme, self._query = scheme + mark, ask + query
        self._base = plain_path(self._store.local_path()) if self._store.is_local else base
        with self._opened() as (header, _):
            self.header = header
        self.columns = self._known_columns()

    def _known_columns(self) -> dict[str, str]:
        """Our columns and theirs. A column of the very name goes before another name for it."""
        columns: dict[str, str] = {}
        for name in self.header:
            plain = name.strip().lower()
            if plain in MANIFEST.names and plain not in columns:
                columns[plain] = name
        for name in self.header:
            alias = _ALIASES.get(name.strip().lower())
            if alias and alias not in columns:
                columns[alias] = name
        if "uri" not in columns:
            found = ", ".join(self.header) or "none"
            raise UsageError(
                f"{self.uri} needs a column uri (or path, or filename) of paths; its columns are: {found}."
            )
        return columns

    @contextmanager
    def _opened(self) -> Iterator[tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]]:
        """The names of the columns, and the rows with their numbers."""
        try:
            with self._store.open(self._name) as file:
                yield _csv_rows(file) if self._is_csv else _parquet_rows(file)
        except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
            kind = "CSV in UTF-8" if self._is_csv else "Parquet"
            raise UsageError(f"{self.uri} cannot be read as {kind}: {error}.", Reason.UNREADABLE_FILE) from None

    def __iter__(self) -> Iterator[Video]:
        number = 0
        with self._opened() as (_, rows):
            for number, row in rows:
                try:
                    yield self._video({name: row[theirs] for name, theirs in self.columns.items()})
                except (UsageError, TypeError, ValueError, AttributeError) as error:
                    raise UsageError(f"{self.uri}, row {number}: {error}") from None
        if not number:
            raise UsageError(f"{self.uri} has no row of values; list videos in it.", Reason.EMPTY_FILE)

    def _video(self, row: dict[str, Any]) -> Video:
        uri, name = self._placed(_text(row["uri"]) or "")
        values: dict[str, Any] = {column: _parsed(column, value) for column, value in row.items()}
        return Video(**values | {"uri": uri, "video": values.get("video") or name})

    def _placed(self, named: str) -> tuple[str, str]:
        """The full path or URL of what a row names, and an id made from it."""
        if "://" in named:
            path = without_password(named).partition("://")[2].partition("?")[0]
            return named, video_id(posixpath.normpath(path).strip("/"))
        if not named:
            raise UsageError("uri is empty; every row needs the path of a video.")
        if named.startswith("/"):
            return named, video_id(posixpath.normpath(named).strip("/"))
        full = posixpath.normpath(posixpath.join(self._base, named))
        below = posixpath.relpath(full, self._base or "/")
        return f"{self._scheme}{full}{self._query}", video_id(full.strip("/") if below.startswith("../") else below)


def _csv_rows(file: Any) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    header = next(reader, [])

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, values in enumerate(reader, 2):
            if any(values):
                yield number, dict(zip(header, values, strict=False)) | dict.fromkeys(header[len(values) :])

    return header, rows()


def _parquet_rows(file: Any) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    parquet: Any = pq.ParquetFile(file)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for batch in parquet.iter_batches(_BATCH, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield number, row

    return list(parquet.schema_arrow.names), rows()


def _text(value: Any) -> str | None:
    return (str(value).strip() or None) if value is not None else None


def _number(value: Any) -> float | None:
    plain = _text(value)
    try:
        return None if plain is None else float(plain)
    except ValueError:
        raise UsageError(f"mos is {value!r}; it must be a number or empty.") from None


def _identity(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list) else (_text(value) or "").split(";")
    return tuple(plain for name in names if (plain := _text(name)))


def _parsed(column: str, value: Any) -> Any:
    match column:
        case "label":
            return parse_label(value)
        case "mos":
            return _number(value)
        case "identity":
            return _identity(value)
    return _text(value)
