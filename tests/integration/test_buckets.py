"""A dataset in a bucket, and an output in a bucket: what comes out is what comes out of folders."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from pipelines.config import EmbedOptions, Job
from pipelines.run import RunOptions, run
from tests.mixed import BAD, GOOD
from unmask.errors import StorageError
from unmask.plan import Sampling
from unmask.products import Products
from unmask.storage import Store

JOB = Job(sampling=Sampling(frames=6), embed=(EmbedOptions(model="mobilenetv3_small_050", pretrained=False),))
OPTIONS = RunOptions(shard_videos=5)
SECRET = "hunter2"
ODD = "real/a b #1 100%25 [x] ü"
"""A name that a URL could not have as it is."""


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def query() -> Iterator[str]:
    """How the buckets of a server of S3 are reached that runs as long as these tests."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    service = pafs.S3FileSystem(
        access_key="key",
        secret_key=SECRET,
        endpoint_override=f"{host}:{port}",
        scheme="http",
        allow_bucket_creation=True,
    )
    service.create_dir("datasets")
    service.create_dir("products")
    yield f"endpoint_override={host}:{port}&scheme=http"
    server.stop()


@pytest.fixture
def bucket(query: str) -> Store:
    return Store(f"s3://key:{SECRET}@products/tests?{query}")


def test_files_are_written_listed_read_and_deleted(bucket: Store, tmp_path: Path) -> None:
    assert bucket.names(deep=True) == []
    bucket.check_writable()
    bucket.write("videos/00000.parquet", b"zero")
    bucket.write(f"videos/{ODD}.txt", b"odd")
    data = np.random.default_rng(0).bytes(20 * 1024**2)
    with bucket.writing("crops/00000.tar", tmp_path) as path:
        path.write_bytes(data)
        assert not bucket.exists("crops/00000.tar")
    assert list(tmp_path.iterdir()) == []
    assert bucket.names(deep=True) == ["crops/00000.tar", "videos/00000.parquet", f"videos/{ODD}.txt"]
    assert bucket.names("videos") == ["videos/00000.parquet"]
    with bucket.open("crops/00000.tar") as file:
        assert file.read_at(1000, 17 * 1024**2) == data[17 * 1024**2 :][:1000]
    assert Store(bucket.uri_of(f"videos/{ODD}.txt")).read("") == b"odd"
    assert Store(bucket.uri_of(f"videos/{ODD}.txt")).fetch(tmp_path).read_bytes() == b"odd"
    bucket.write("crops/00001.tar.part", b"half")
    bucket.sweep()
    bucket.delete("videos/00000.parquet")
    bucket.delete("videos/00000.parquet")
    bucket.delete_folder("crops")
    bucket.delete_folder("crops")
    assert bucket.names(deep=True) == [f"videos/{ODD}.txt"]
    bucket.delete_folder("")
    assert bucket.names(deep=True) == []


def test_a_block_that_fails_puts_nothing_in_the_bucket(bucket: Store, tmp_path: Path) -> None:
    def fail() -> None:
        with bucket.writing("a", tmp_path) as path:
            path.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert bucket.names(deep=True) == []
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_is_not_there_is_said(query: str) -> None:
    store = Store(f"s3://key:{SECRET}@nobodys/out?{query}")
    with pytest.raises(StorageError, match=r"s3://nobodys/out/\S+ cannot be written .*bucket does not exist") as caught:
        store.check_writable()
    assert SECRET not in str(caught.value)


def rows(store: Store, table: str) -> list[dict[str, Any]]:
    """All rows of a table, without what tells where the videos and the output lie."""
    tables = [store.read_table(f"{table}/{shard:05d}.parquet") for shard in Products(store).shards()]
    found: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    for row in found:
        for changing in ("uri", "config", "message"):
            row.pop(changing, None)
    return found


@pytest.mark.usefixtures("local_ray")
@pytest.mark.slow
def test_a_dataset_and_an_output_in_buckets_give_what_folders_give(query: str, mixed: Path, tmp_path: Path) -> None:
    dataset, out = tmp_path / "dataset", tmp_path / "out"
    shutil.copytree(mixed, dataset)
    shutil.copy(mixed / "real/hevc.mp4", dataset / f"{ODD}.mp4")
    there = Store(f"s3://key:{SECRET}@datasets/mixed?{query}")
    for path in dataset.rglob("*.*"):
        there.write(str(path.relative_to(dataset)), path.read_bytes())
    in_bucket = Store(f"s3://key:{SECRET}@products/runs/1?{query}")

    here = run(str(dataset), str(out), JOB, OPTIONS, say=silent)
    said = run(there.uri, in_bucket.uri, JOB, OPTIONS, say=silent)

    assert said["failed"] == here["failed"] == sum(status == "failed" for status, _ in BAD.values())
    local = Store(out)
    assert rows(in_bucket, "videos") == rows(local, "videos")
    assert rows(in_bucket, "faces") == rows(local, "faces")
    statuses = {row["video"]: row["status"] for row in rows(in_bucket, "videos")}
    assert all(statuses[name] == "done" for name in (*GOOD, ODD))

    (key,) = {path.parent.name for path in out.glob("features/*/*.parquet")}
    mine, theirs = Products(in_bucket), Products(local)
    for shard in mine.shards():
        np.testing.assert_array_equal(mine.features(key, shard), theirs.features(key, shard))
        crops = zip(mine.crops(mine.faces(shard)), theirs.crops(theirs.faces(shard)), strict=True)
        for (_, crop), (_, expected) in crops:
            np.testing.assert_array_equal(crop, expected)
    assert set(in_bucket.names(deep=True)) == set(local.names(deep=True))

    again = run(there.uri, in_bucket.uri, JOB, OPTIONS, say=silent)
    assert again["videos"]["finished"] == 0
    for name in in_bucket.names(deep=True):
        if name != "manifest.parquet":  # by which workers find the videos
            assert SECRET.encode() not in in_bucket.read(name), name
