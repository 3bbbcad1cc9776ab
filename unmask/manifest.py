"""The manifest: one row a video, what a run starts from, in Parquet or CSV.

A manifest may hold millions of rows: it is written from an iterator and read by ranges of rows, and neither holds more
than one row group in memory.
"""

import csv
import itertools
import math
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unmask.errors import Reason, UsageError
from unmask.storage import Store

__all__ = ["MANIFEST", "SPLITS", "Manifest", "Video", "split_uri", "video_id", "write_manifest"]

SPLITS = ("train", "val", "test")

MANIFEST = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("mos", pa.float64()),
        pa.field("method", pa.string()),
        pa.field("compression", pa.string()),
        pa.field("identity", pa.list_(pa.string())),
        pa.field("source", pa.string()),
        pa.field("split", pa.string()),
        pa.field("part", pa.string()),
    ]
)
"""The columns of a manifest; see `Video` for their meaning."""

ROW_GROUP = 4096
"""Rows held at once: some hundred kilobytes, and a shard is found by reading little more than itself."""

# Control characters, and halves of characters that no file in UTF-8 can hold.
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """One video of a dataset. Files are named after `video`, so it must be safe as a relative path.

    Raises:
        UsageError: A value is out of its range; the sentence names the column.
    """

    video: str
    """Unique id, such as `Deepfakes/c23/519_515`: parts between slashes, none empty, `.` or `..`."""
    uri: str
    """Where it lies: an absolute path, or a URL of a filesystem (`s3://bucket/clip.mp4`)."""
    label: int | None = None
    """1 for a fake, 0 for a real video, None where nobody says."""
    mos: float | None = None
    """Mean opinion score of its realism, where people gave one."""
    method: str | None = None
    """How the fake was made."""
    compression: str | None = None
    """Quality level of the dataset, such as c23."""
    identity: tuple[str, ...] = ()
    """The people in it; a face swap has both. Empty where the dataset does not tell."""
    source: str | None = None
    """Id of the video that a fake was made from, whether or not that one is in the manifest."""
    split: str | None = None
    """The dataset's own split: train, val or test."""
    part: str | None = None
    """The piece of the dataset that it came in, such as DFDC's part number."""

    def __post_init__(self) -> None:
        _check_id("video", self.video)
        if not self.uri or _CONTROL.search(self.uri):
            raise UsageError(f"uri is {self.uri!r}; it must be a path or URL without control characters.")
        if self.label not in (0, 1, None):
            raise UsageError(f"label is {self.label!r}; it must be 0 (real), 1 (fake) or empty.")
        if self.mos is not None and not math.isfinite(self.mos):
            raise UsageError(f"mos is {self.mos}; it must be a finite number or empty.")
        if self.split not in (*SPLITS, None):
            raise UsageError(f"split is {self.split!r}; it must be {', '.join(SPLITS)} or empty.")
        if self.source is not None:
            _check_id("source", self.source)
        for name in self.identity:
            if not name.strip() or ";" in name or _CONTROL.search(name):
                raise UsageError(f"identity has {name!r}; a name must not be empty nor hold ';' or control characters.")


def _check_id(column: str, name: str) -> None:
    if not name:
        raise UsageError(f"{column} is empty; every id needs a name.")
    if "\\" in name or _CONTROL.search(name) or any(p in {"", ".", ".."} for p in name.split("/")):
        raise UsageError(
            f"{column} is {name!r}; an id must be a relative path without '.', '..', empty parts, backslashes or "
            "control characters."
        )
    if max(len(p.encode()) for p in name.split("/")) > 200 or len(name) > 1000:
        raise UsageError(f"{column} {name[:40]!r}... is too long; each part may have 200 bytes, the whole 1000.")


def video_id(path: str) -> str:
    """The id of a file: its relative path without `.mp4`. Another suffix stays, so that two files never share one."""
    return path[:-4] if path.lower().endswith(".mp4") and PurePosixPath(path).name.lower() != ".mp4" else path


def split_uri(uri: str) -> tuple[str, str]:
    """The folder that a path or URL lies in, and its name there. A query (`?region=...`) stays with the folder."""
    scheme, mark, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    path, ask, query = rest.partition("?") if mark else (rest, "", "")
    head, slash, name = path.rpartition("/")
    return f"{scheme}{mark}{head or slash or ('' if mark else '.')}{ask}{query}", name


def write_manifest(videos: Iterable[Video], uri: str) -> int:
    """Write a manifest, in CSV where `uri` ends in `.csv`, else in Parquet.

    In CSV, the names of `identity` are joined by `;`.

    Returns:
        The number of rows.

    Raises:
        UsageError: Two videos have the same id (both are named).
        StorageError: Nothing can be written at `uri`.
    """
    hashes = array("q")
    folder, name = split_uri(uri)
    is_csv = name.lower().endswith(".csv")
    with TemporaryDirectory(prefix="unmask-") as scratch, Store(folder).writing(name, Path(scratch)) as path:
        (_write_csv if is_csv else _write_parquet)(_counted(videos, hashes), path)
        _refuse_duplicates(np.frombuffer(hashes, np.int64), path, is_csv=is_csv)
    return len(hashes)


def _counted(videos: Iterable[Video], hashes: "array[int]") -> Iterator[Video]:
    """Eight bytes a row tell, at the end, whether ids repeat; a set of ids would cost 150."""
    for video in videos:
        hashes.append(hash(video.video))
        yield video


def _write_parquet(videos: Iterator[Video], path: Path) -> None:
    with pq.ParquetWriter(path, MANIFEST, compression="zstd") as writer:
        while rows := list(itertools.islice(videos, ROW_GROUP)):
            columns = {name: [getattr(v, name) for v in rows] for name in MANIFEST.names}
            writer.write_table(pa.table(columns, MANIFEST), row_group_size=ROW_GROUP)


def _write_csv(videos: Iterator[Video], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(MANIFEST.names)
        for video in videos:
            row = [getattr(video, name) for name in MANIFEST.names]
            row[MANIFEST.names.index("identity")] = ";".join(video.identity)
            writer.writerow(["" if value is None else value for value in row])


def _refuse_duplicates(hashes: np.ndarray[Any, np.dtype[np.int64]], path: Path, *, is_csv: bool) -> None:
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) == len(hashes):
        return
    suspects = set(np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist())
    seen: dict[str, tuple[int, str]] = {}
    for row, (video, uri) in enumerate(_ids(path, is_csv=is_csv)):
        if row in suspects:
            if video in seen:
                first, first_uri = seen[video]
                raise UsageError(
                    f"Two videos have the id {video!r}: row {first + 1} ({first_uri}) and row {row + 1} ({uri}); "
                    "give each an id of its own."
                )
            seen[video] = row, uri


def _ids(path: Path, *, is_csv: bool) -> Iterator[tuple[str, str]]:
    if is_csv:
        with path.open(newline="", encoding="utf-8") as file:
            yield from ((row["video"], row["uri"]) for row in csv.DictReader(file))
        return
    with pq.ParquetFile(path) as parquet:
        for batch in parquet.iter_batches(ROW_GROUP, columns=["video", "uri"]):
            yield from zip(batch["video"].to_pylist(), batch["uri"].to_pylist(), strict=True)


class Manifest:
    """A Parquet manifest that `write_manifest` wrote, read by ranges of rows.

    Holds one row group at a time, whatever the number of rows. Close it, or use it in a `with`.

    Raises:
        UsageError: It is no manifest.
        StorageError: There is no such file, or it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        folder, name = split_uri(uri)
        self._store, self._name = Store(folder), name
        self._file = self._store.open(name)
        try:
            self._parquet = pq.ParquetFile(self._file)
            self._check_columns()
        except (pa.ArrowException, OSError) as error:
            self.close()
            raise UsageError(f"{uri} is no Parquet file ({error}).", Reason.UNREADABLE_FILE) from None
        except UsageError:
            self.close()
            raise
        groups = self._parquet.metadata
        sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
        self._starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        self._cached: tuple[int, pa.Table] | None = None

    def _check_columns(self) -> None:
        found = self._parquet.schema_arrow
        for field in MANIFEST:
            if field.name not in found.names or not found.field(field.name).type.equals(field.type):
                raise UsageError(
                    f"{self.uri} is no manifest of Unmask: its column {field.name} is missing or not {field.type}; "
                    "read it as a dataset (`--dataset table`)."
                )

    def __len__(self) -> int:
        return int(self._parquet.metadata.num_rows)

    def table(self, start: int, stop: int) -> pa.Table:
        """Rows [start, stop) as a table of schema `MANIFEST`; ends are clipped as in a slice."""
        start, stop = max(0, start), min(stop, len(self))
        pieces = []
        while start < stop:
            group = int(np.searchsorted(self._starts, start, side="right")) - 1
            base, end = int(self._starts[group]), int(self._starts[group + 1])
            pieces.append(self._group(group).slice(start - base, min(stop, end) - start))
            start = end
        return pa.concat_tables(pieces) if pieces else MANIFEST.empty_table()

    def _group(self, group: int) -> pa.Table:
        if self._cached is None or self._cached[0] != group:
            with self._store.telling("read", self._name):
                table = self._parquet.read_row_group(group, columns=MANIFEST.names, use_threads=False)
            self._cached = group, table.select(MANIFEST.names).cast(MANIFEST)
        return self._cached[1]

    def read(self, start: int, stop: int) -> list[Video]:
        """Rows [start, stop); ends are clipped as in a slice."""
        return [_video(row) for row in self.table(start, stop).to_pylist()]

    def __iter__(self) -> Iterator[Video]:
        for start in range(0, len(self), ROW_GROUP):
            yield from self.read(start, start + ROW_GROUP)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _video(row: dict[str, Any]) -> Video:
    return Video(**row | {"identity": tuple(row["identity"] or ())})


assert tuple(MANIFEST.names) == tuple(f.name for f in fields(Video))
