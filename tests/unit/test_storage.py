import os
import pickle
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from unmask.atomic import PART
from unmask.errors import StorageError
from unmask.storage import Store

TABLE = pa.table({"video": ["a", "b"], "faces": [1, 2]})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory; skips where none may be mounted."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with less than a megabyte of space."""
    yield from mounted(tmp_path / "disk", "size=1m")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "size=1m,ro")


@pytest.fixture
def in_memory() -> Iterator[Store]:
    """A store of fsspec's."""
    store = Store(f"memory://unmask-{os.getpid()}/out")
    yield store
    store.delete_folder("")


def check_one_sentence(message: str) -> None:
    assert message.endswith(".")
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.fixture(params=["path", "file URL", "fsspec"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "fsspec":
        return request.getfixturevalue("in_memory")  # type: ignore[no-any-return]
    return Store(tmp_path / "out" if request.param == "path" else f"file://{tmp_path}/a%20place")


def test_files_are_written_listed_read_and_deleted(store: Store, tmp_path: Path) -> None:
    assert store.names() == store.names("faces") == store.names(deep=True) == []
    store.write("job.json", b"{}")
    store.write("faces/00001.parquet", memoryview(b"one"))
    store.write("faces/00000.parquet", pa.py_buffer(b"zero"))
    store.write("state/00000/a", b"")
    assert store.names() == ["job.json"]
    assert store.names("faces") == ["faces/00000.parquet", "faces/00001.parquet"]
    assert store.names(deep=True) == ["faces/00000.parquet", "faces/00001.parquet", "job.json", "state/00000/a"]
    assert store.exists("job.json")
    assert not store.exists("faces")
    assert not store.exists("job")
    assert (store.read("job.json"), store.read("faces/00001.parquet"), store.read("state/00000/a")) == (
        b"{}",
        b"one",
        b"",
    )
    store.write("job.json", b"other")
    assert store.read("job.json") == b"other"
    store.delete("job.json")
    store.delete("job.json")
    store.delete_folder("state")
    store.delete_folder("state")
    assert store.names(deep=True) == ["faces/00000.parquet", "faces/00001.parquet"]


def test_a_large_file_appears_at_the_end(store: Store, tmp_path: Path) -> None:
    data = os.urandom(9 * 1024**2)
    with store.writing("crops/00000.tar", tmp_path) as path:
        path.write_bytes(data)
        assert not store.exists("crops/00000.tar")
    assert store.names(deep=True) == ["crops/00000.tar"]
    with store.open("crops/00000.tar") as file:
        assert file.read_at(1000, 8 * 1024**2) == data[8 * 1024**2 :][:1000]
        assert file.size() == len(data)
    assert not (tmp_path / "00000.tar").exists()


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there(store: Store, tmp_path: Path, error: type[BaseException]) -> None:
    store.write("a.tar", b"old")

    def fail() -> None:
        with store.writing("a.tar", tmp_path) as path:
            path.write_bytes(b"half")
            raise error("it stops here")

    with pytest.raises(StorageError if error is OSError else error, match="it stops here"):
        fail()
    assert store.read("a.tar") == b"old"
    assert store.names(deep=True) == ["a.tar"]
    assert not [name for name in files(tmp_path) if name.endswith(PART)]


def test_what_interrupted_writers_left_is_swept(store: Store) -> None:
    ours = (f"videos/.00000.parquet.0123abcd{PART}", f"crops/00000.tar{PART}")
    theirs = ("videos/00000.parquet", f"videos/movie.mp4{PART}", f"x{PART}/y")
    for name in (*ours, *theirs):
        store.write(name, b"x")
    store.sweep()
    assert store.names(deep=True) == list(theirs)


def test_tables_come_back(store: Store) -> None:
    store.write_table("faces/00000.parquet", TABLE)
    assert store.read_table("faces/00000.parquet").equals(TABLE)
    assert store.read_table("faces/00000.parquet", ["faces"]).equals(TABLE.select(["faces"]))


def test_a_store_travels(store: Store) -> None:
    store.write("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again.uri == store.uri
    assert again.read("a") == b"1"
    assert len(pickle.dumps(store)) < 1000


def test_a_place_that_can_be_written_to_is_left_as_it_was(store: Store) -> None:
    store.write("a", b"1")
    store.check_writable()
    assert store.names(deep=True) == ["a"]


def test_one_file_is_fetched(store: Store, tmp_path: Path) -> None:
    store.write("a/clip 1.mp4", b"pixels" * 2_000_000)
    clip = Store(store.uri_of("a/clip 1.mp4"))
    local = clip.fetch(tmp_path)
    assert local.name == "clip 1.mp4"
    assert local.read_bytes() == b"pixels" * 2_000_000
    assert clip.read("") == local.read_bytes()


@pytest.mark.parametrize("name", ["plain", "with space", "50%25 #1 [x] ü", "a?b"])
def test_local_paths_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / name)
    store.write("a b#1%20.txt", b"1")
    assert (tmp_path / name / "a b#1%20.txt").read_bytes() == b"1"
    assert Store(store.uri_of("a b#1%20.txt")).read("") == b"1"
    assert store.is_local
    assert store.local_path("x") == tmp_path / name / "x"


def test_names_below_a_file_url_are_escaped(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}")
    store.write("a b#1%20.txt", b"1")
    assert Store(store.uri_of("a b#1%20.txt")).read("") == b"1"


def test_a_query_stays_at_the_end_of_a_uri() -> None:
    store = Store("s3://key:secret@bucket/out/?region=eu-west-1&scheme=https")
    assert store.uri_of("a/b") == "s3://key:secret@bucket/out/a/b?region=eu-west-1&scheme=https"
    assert Store("s3://bucket/out").uri_of("a") == "s3://bucket/out/a"
    assert not store.is_local


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:hunter2@bucket/out/?scheme=http", "s3://bucket/out"),
        ("file:///a%20b", "file:///a%20b"),
        ("/a?b", "/a?b"),
    ],
)
def test_people_see_no_password(uri: str, shown: str) -> None:
    assert Store(uri).shown == shown
    assert repr(Store(uri)) == f"Store({shown!r})"


MISSING: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("a/missing"),
    "open": lambda store: store.open("a/missing"),
    "table": lambda store: store.read_table("a/missing"),
}


@pytest.mark.parametrize("do", MISSING)
def test_what_is_missing_is_said(store: Store, do: str) -> None:
    with pytest.raises(StorageError, match="a/missing cannot be read") as caught:
        MISSING[do](store)
    check_one_sentence(str(caught.value))


def test_a_damaged_table_is_said(store: Store) -> None:
    store.write("faces/00000.parquet", b"PAR1 and then nothing of use PAR1")
    with pytest.raises(StorageError, match=r"faces/00000.parquet cannot be read") as caught:
        store.read_table("faces/00000.parquet")
    check_one_sentence(str(caught.value))


WRITING: dict[str, Callable[[Store], object]] = {
    "check": Store.check_writable,
    "write": lambda store: store.write("a/b", b"x"),
    "table": lambda store: store.write_table("a/b", TABLE),
    "large": lambda store: _large(store, 1),
}


def _large(store: Store, megabytes: int) -> None:
    with store.writing("a/b", Path()) as path, path.open("wb") as file:
        for _ in range(megabytes):
            file.write(bytes(1024**2))


@pytest.mark.parametrize("do", WRITING)
def test_a_place_below_a_file_cannot_be_written_to(tmp_path: Path, do: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/out/.* cannot be written \(Not a directory\)") as caught:
        WRITING[do](Store(tmp_path / "file" / "out"))
    check_one_sentence(str(caught.value))
    assert files(tmp_path) == ["file"]


def test_a_folder_in_place_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"cannot be written \(Is a directory\)"):
        Store(tmp_path).write("a", b"x")
    assert files(tmp_path) == []


@pytest.mark.parametrize("do", WRITING)
def test_a_read_only_disk_is_said(read_only_disk: Path, do: str) -> None:
    with pytest.raises(StorageError, match=r"cannot be written \(Read-only file system\)"):
        WRITING[do](Store(read_only_disk))


def test_a_full_disk_keeps_what_it_has_and_nothing_half_written(full_disk: Path) -> None:
    store = Store(full_disk)
    store.write("videos/00000.parquet", b"whole")
    with pytest.raises(StorageError, match=r"b cannot be written \(No space left on device\)") as caught:
        store.write("videos/b", os.urandom(2 * 1024**2))
    check_one_sentence(str(caught.value))
    with pytest.raises(StorageError, match="No space left on device"):
        store.write("videos/00000.parquet", os.urandom(2 * 1024**2))
    with pytest.raises(StorageError, match="No space left on device"):
        _large(store, 2)
    assert files(full_disk) == ["videos/00000.parquet"]
    assert store.read("videos/00000.parquet") == b"whole"
    store.write("videos/00001.parquet", bytes(500_000))
    with pytest.raises(StorageError, match="No space left on device"):
        store.write("videos/00002.parquet", bytes(700_000))
    store.delete("videos/00001.parquet")
    store.write("videos/00002.parquet", bytes(700_000))


def test_a_limit_to_file_sizes_is_met_like_a_full_disk(tmp_path: Path) -> None:
    program = """
        import resource, sys
        from pathlib import Path
        from unmask.errors import StorageError
        from unmask.storage import Store

        store = Store(sys.argv[1])
        store.write("a", b"whole")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

        def large():
            with store.writing("a", Path()) as path:
                path.write_bytes(bytes(1_000_000))

        for attempt in (lambda: store.write("a", bytes(1_000_000)), large):
            try:
                attempt()
            except StorageError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, check=True
    )
    told = done.stdout.splitlines()
    assert len(told) == 2
    assert all("a cannot be written (File too large);" in line for line in told)
    assert files(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("quux://user:hunter2@host/place", "quux://host/place cannot be opened"),
        ("sftp://user:hunter2@127.0.0.1/place", "sftp://127.0.0.1/place cannot be opened"),
        ("s3://key:hunter2@bucket/place?endpoint=here", "endpoint is none of"),
        ("s3://key:hunter2@bucket/place?endpoint_override=h&request_timeout=soon", "request_timeout|'soon'"),
        ("s3://key:hunter2@?endpoint_override=127.0.0.1:9", "cannot be"),
        ("file://user:hunter2@host/place", "file://host/place cannot be opened"),
        ("http://user:hunter2@127.0.0.1:9/place", "cannot be written"),
    ],
    ids=["unknown", "no-library", "unknown-option", "no-number", "no-bucket", "file-elsewhere", "no-writing"],
)
def test_a_place_that_cannot_be_opened_is_said_without_its_password(uri: str, told: str) -> None:
    with pytest.raises(StorageError, match=told) as caught:
        Store(uri).check_writable()
    check_one_sentence(str(caught.value))
    assert "hunter2" not in str(caught.value)


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _asking(port: int) -> Store:
    query = f"endpoint_override=127.0.0.1:{port}&scheme=http&request_timeout=1&connect_timeout=1"
    return Store(f"s3://key:hunter2@bucket/out?{query}")


@pytest.mark.timeout(60)
def test_a_bucket_that_nobody_serves_is_said_soon() -> None:
    with pytest.raises(StorageError, match=r"s3://bucket/out/\S+ cannot be written .*connect") as caught:
        _asking(_closed_port()).check_writable()
    check_one_sentence(str(caught.value))
    assert "hunter2" not in str(caught.value)


@pytest.mark.timeout(60)
def test_a_bucket_whose_server_is_silent_is_given_up() -> None:
    told = r"s3://bucket/out/\S+ cannot be written .*[Tt]imeout"
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StorageError, match=told):
        _asking(silent.getsockname()[1]).check_writable()
