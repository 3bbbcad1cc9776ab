"""A place that holds files: a local folder, or a bucket behind any pyarrow or fsspec file system.

Files are whole or absent: locally they are written beside and renamed, in a bucket a file appears when it is complete.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from unmask.atomic import PART, replacing
from unmask.errors import StorageError
from unmask.inputs import without_password

__all__ = ["Store"]

# Part of a large file that travels at once.
_CHUNK_BYTES = 8 * 1024**2
# What the file systems of pyarrow and fsspec raise for a place that is not there, is full, cannot be reached, or is
# not made to be written to.
_FAILURES = (OSError, pa.ArrowException, NotImplementedError)
# Enough for a busy service, and soon enough to tell that there is none; from a URI, Arrow would try for 100 seconds.
_S3_PATIENCE = {"connect_timeout": 5.0, "request_timeout": 10.0}
_S3_ATTEMPTS = 3
_GCS_PATIENCE = "retry_limit_seconds=60"
# Other places that Arrow opens by itself.
_ARROWS_OWN = {"file", "hdfs", "viewfs", "abfs", "abfss"}
# Of `S3FileSystem`: what the query of a URI may set, and how it is read.
_S3_OPTIONS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("region", "scheme", "endpoint_override", "tls_ca_file_path"), str),
    **dict.fromkeys(_S3_PATIENCE, float),
    **dict.fromkeys(
        ("anonymous", "allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing"),
        lambda text: text.lower() == "true",
    ),
}

# What `replacing` writes to, and `Store.writing` in a bucket.
_PART = re.compile(rf"\..+\.[0-9a-f]{{8}}{re.escape(PART)}|\d{{5}}\.tar{re.escape(PART)}")


class Store:
    """Files under one root, named by relative paths with `/`. Cheap to send to another process.

    Args:
        uri: A local path, or `s3://bucket/path`, `gs://...`, `file://...`, or any other URL that fsspec knows. Keys of
            buckets are taken as they are, with spaces and percent signs. A query may set what pyarrow's file system
            takes: `s3://KEY:SECRET@bucket/path?endpoint_override=HOST:PORT&scheme=http`.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = os.fspath(uri)
        self._opened: tuple[pafs.FileSystem, str] | None = None

    def __repr__(self) -> str:
        return f"Store({self.shown!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.uri,)

    @property
    def is_local(self) -> bool:
        """Whether the files lie in a folder of this machine (or one that it mounts)."""
        return "://" not in self.uri or self.uri.startswith("file://")

    @property
    def shown(self) -> str:
        """The URI as people may see it: without user, password and query."""
        return without_password(self.uri).partition("?")[0].rstrip("/") if "://" in self.uri else self.uri

    def place(self, name: str = "") -> tuple[pafs.FileSystem, str]:
        """Where a file is, for those who open it by themselves: pyarrow's file system, and the path in it."""
        if self._opened is None:
            with self.telling("opened"):
                self._opened = _file_system(self.uri)
        system, root = self._opened
        return system, str(PurePosixPath(root) / name) if name else root

    @contextmanager
    def telling(self, done: str, name: str = "") -> Iterator[None]:
        """One sentence in place of what a file system says.

        Args:
            done: What was to be done with the file: read, written.
            name: Of the file.

        Raises:
            StorageError: In place of what the block raised.
        """
        try:
            yield
        except StorageError:
            raise
        except _FAILURES as error:
            where = f"{self.shown.rstrip('/')}/{name}" if name else self.shown
            cause = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, NotImplementedError):
                cause = "this kind of place cannot do that"
            cause = cause.replace(self.uri, without_password(self.uri))
            told = f"{where} cannot be {done} ({cause}); check the place, its space and your rights."
            raise StorageError(told) from error

    def uri_of(self, name: str) -> str:
        """The URI of a file, for those who open it by themselves."""
        root, mark, query = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        name = quote(name) if root.startswith("file://") else name
        return f"{root.rstrip('/')}/{name}{mark}{query}"

    def local_path(self, name: str = "") -> Path:
        """Where a file of a local store lies."""
        assert self.is_local
        return Path(self.place(name)[1])

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        system, path = self.place(name)
        with self.telling("looked at", name):
            return bool(system.get_file_info(path).type == pafs.FileType.File)

    def names(self, folder: str = "", *, deep: bool = False) -> list[str]:
        """The files in a folder, as names of this store, sorted; none where it does not exist.

        Args:
            folder: Relative to the store's root.
            deep: Those in folders inside it, too.
        """
        system, path = self.place(folder)
        with self.telling("listed", folder):
            found = system.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=deep))
        root = self.place("")[1]
        return sorted(
            str(PurePosixPath(info.path).relative_to(root)) for info in found if info.type == pafs.FileType.File
        )

    def open(self, name: str) -> Any:
        """A file for reading at any place: a `pyarrow.NativeFile`, to be used in a `with` block."""
        system, path = self.place(name)
        with self.telling("read", name):
            return system.open_input_file(path)

    def read(self, name: str) -> bytes:
        """All of a file."""
        with self.telling("read", name), self.open(name) as file:
            return bytes(file.readall())

    def write(self, name: str, data: bytes | memoryview | pa.Buffer) -> None:
        """A small file, whole or not at all.

        Raises:
            StorageError: The place is full, read-only or cannot be reached.
        """
        with self.telling("written", name):
            if self.is_local:
                path = self.local_path(name)
                try:
                    _write(path, data)
                except FileNotFoundError:
                    _write(path, data)  # somebody removed the folder in between
                return
            system, path_there = self.place(name)
            with system.open_output_stream(path_there) as stream:
                stream.write(data)  # at once: an upload that is interrupted is completed by Arrow as it stands

    @contextmanager
    def writing(self, name: str, scratch: Path) -> Iterator[Path]:
        """A large file: give a local path to write to, and put the file in its place at the end.

        Args:
            name: Where it shall appear.
            scratch: A local folder, in case the store is not local.
        """
        with self.telling("written", name):
            if self.is_local:
                path = self.local_path(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as beside:
                    yield beside
                return
            copy = scratch / PurePosixPath(name).name
            try:
                yield copy
                # Under another name first, for the same reason as in `write`.
                (system, path_there), (_, part) = self.place(name), self.place(f"{name}{PART}")
                with copy.open("rb") as source, system.open_output_stream(part) as stream:
                    while chunk := source.read(_CHUNK_BYTES):
                        stream.write(chunk)
                system.move(part, path_there)
            finally:
                copy.unlink(missing_ok=True)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file."""
        with self.telling("read", name), self.open(name) as file:
            return pq.read_table(file, columns=columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        """A Parquet file, whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue())

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        system, path = self.place(name)
        with self.telling("deleted", name):
            if system.get_file_info(path).type == pafs.FileType.File:
                system.delete_file(path)

    def sweep(self) -> None:
        """Remove what interrupted writers left beside their files. Only while nobody writes to the store."""
        for name in self.names(deep=True):
            if _PART.fullmatch(PurePosixPath(name).name):
                self.delete(name)

    def delete_folder(self, folder: str) -> None:
        """Remove a folder and all in it, if it is there."""
        system, path = self.place(folder)
        with self.telling("deleted", folder):
            if system.get_file_info(path).type == pafs.FileType.Directory:
                system.delete_dir(path)

    def fetch(self, scratch: Path) -> Path:
        """The store's root, which is one file, as a local file: itself, or a copy in `scratch`."""
        if self.is_local:
            return self.local_path()
        copy = scratch / PurePosixPath(self.place("")[1]).name
        with self.telling("read"), self.open("") as source, copy.open("wb") as target:
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)
        return copy

    def check_writable(self) -> None:
        """Write, read and delete a small file, so that what is wrong shows before any work is done.

        Raises:
            StorageError: The place cannot be used.
        """
        name = f".unmask-probe-{os.getpid()}"
        self.write(name, b"unmask")
        self.read(name)
        self.delete(name)


def _write(path: Path, data: bytes | memoryview | pa.Buffer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_bytes(data)


def _file_system(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system that holds a URI, and the path in it: pyarrow's where it has one, else fsspec's."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    place, _, query = rest.partition("?")
    if scheme == "file" and place.startswith("/"):
        return pafs.LocalFileSystem(), str(Path(unquote(place)))
    owner, _, key = place.partition("/")
    if scheme == "s3":
        return _s3(owner, query), str(PurePosixPath(owner.rpartition("@")[2], key))
    if scheme in {"gs", "gcs"}:
        asked = query if "retry_limit_seconds" in query else "&".join(filter(None, (query, _GCS_PATIENCE)))
        system, bucket = pafs.FileSystem.from_uri(f"{scheme}://{owner}?{asked}")
        return system, str(PurePosixPath(bucket, key))
    if scheme in _ARROWS_OWN:
        system, path = pafs.FileSystem.from_uri(uri)
        return system, path
    return _by_fsspec(uri)


def _s3(owner: str, query: str) -> pafs.FileSystem:
    """The service that holds a bucket. `owner` is what stands before the first slash: `KEY:SECRET@bucket`."""
    login, _, bucket = owner.rpartition("@")
    user, _, secret = login.partition(":")
    options: dict[str, Any] = dict(_S3_PATIENCE)
    try:
        for name, text in parse_qsl(query, keep_blank_values=True):
            if name not in _S3_OPTIONS:
                raise ValueError(f"{name} is none of {', '.join(sorted(_S3_OPTIONS))}")
            options[name] = _S3_OPTIONS[name](text)
        if login:
            options |= {"access_key": unquote(user), "secret_key": unquote(secret)}
        if not {"region", "endpoint_override"} & options.keys() and "AWS_ENDPOINT_URL" not in os.environ:
            options["region"] = pafs.resolve_s3_region(bucket)
        return pafs.S3FileSystem(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS))
    except ValueError as error:
        raise StorageError(f"s3://{bucket} cannot be opened ({error}); check its URI.") from None


def _by_fsspec(uri: str) -> tuple[pafs.FileSystem, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        told = f"{without_password(uri)} cannot be opened ({error}); install what fsspec needs for it."
        raise StorageError(told) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path
