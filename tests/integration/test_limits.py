"""What a run must not outgrow: the disk, the driver's memory, Ray's object store."""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from pipelines.config import Job
from pipelines.parcels import Outcome, Parcel, to_row
from pipelines.run import RunOptions, run
from pipelines.work import Work
from tests.clips import Encoding, clip
from tests.portraits import filmed
from unmask.atomic import PART
from unmask.errors import Reason, StorageError
from unmask.manifest import Video, write_manifest
from unmask.plan import Sampling
from unmask.products import Products
from unmask.storage import Store

ROOT = Path(__file__).parents[2]
JOB = Job(sampling=Sampling(frames=6))


def silent(_: str) -> None:
    pass


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table, in the order of the shards."""
    tables = [Store(out).read_table(f"{table}/{shard:05d}.parquet") for shard in Products(Store(out)).shards()]
    return cast(list[dict[str, Any]], pa.concat_tables(tables).to_pylist())


def elsewhere(function: str, *args: object) -> dict[str, Any]:
    """What a function of this module says, called in a process of its own."""
    call = f"from tests.integration import test_limits; test_limits.{function}(*{[str(arg) for arg in args]!r})"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", call], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return cast(dict[str, Any], json.loads(done.stdout.splitlines()[-1]))


# A full disk.


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The products of a run with space enough."""
    out = tmp_path_factory.mktemp("undisturbed")
    run(str(mixed), str(out), JOB, RunOptions(shard_videos=4), say=silent)
    return out


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with 64 KB of space; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        # Lazily: processes that the run left may still be about to end.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grow(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


# Ray Data's, where all that is left to do is to assemble one shard.
@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors:UserWarning")
@pytest.mark.parametrize(
    ("share", "shard_videos"),
    [pytest.param(0.4, 4, id="in-the-stream"), pytest.param(1.4, 100, id="while-assembling", marks=pytest.mark.slow)],
)
def test_a_disk_that_fills_ends_the_run_and_space_lets_it_go_on(
    undisturbed: Path, mixed: Path, disk: Path, share: float, shard_videos: int
) -> None:
    crops = sum(path.stat().st_size for path in undisturbed.glob("crops/*.tar"))
    grow(disk, int(crops * share))
    options = RunOptions(shard_videos=shard_videos)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)") as caught:
        run(str(mixed), str(disk), JOB, options, say=silent)
    assert str(disk) in str(caught.value)
    before = shutil.disk_usage(disk)
    assert before.used > before.total / 4
    # Whatever is there under its own name can be read.
    products = Products(Store(disk))
    for shard in products.shards():
        assert len(products.videos(shard)) == 4
        for row, crop in products.crops(products.faces(shard)):
            assert crop.shape[:2] == (row["crop_height"], row["crop_width"])
    for path in disk.rglob("*.json"):
        json.loads(path.read_text())
    for path in disk.rglob("*.arrow"):
        pa.ipc.open_file(path).read_all()

    grow(disk, 64 * 1024**2)
    run(str(mixed), str(disk), JOB, options, say=silent)
    for table in ("videos", "faces"):
        for mine, theirs in zip(rows(disk, table), rows(undisturbed, table), strict=True):
            for changing in ("crop_file", "crop_offset", "config"):
                mine.pop(changing, None)
                theirs.pop(changing, None)
            assert mine == theirs
    assert sum(path.stat().st_size for path in disk.glob("crops/*.tar")) == pytest.approx(crops, rel=0.05)
    assert not list((disk / "state").glob("0*"))
    assert not [path for path in disk.rglob("*") if path.name.endswith(PART)]


# The driver's memory.

_TOGETHER = 256


def nothing_decoded(table: pa.Table, *, work: Work, **_: Any) -> Iterator[pa.Table]:
    """A decode stage that opens nothing: all files are missing. In groups of outcomes, as the real one gives them."""
    for shard in table["shard"].to_pylist():
        count = work.shards.count(shard)
        for start in range(0, count, _TOGETHER):
            yield to_row(
                Parcel(
                    shard=shard,
                    outcomes=tuple(
                        Outcome(video=k, status="failed", reason=Reason.MISSING_FILE, message="It is not there.")
                        for k in range(start, min(start + _TOGETHER, count))
                    ),
                )
            )


def peak_mb() -> float:
    """The most memory that this process ever held, in MB. Linux counts anew for each program."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def run_nothing(manifest: str, out: str) -> None:
    """A run over a manifest with a decode stage that opens nothing; prints what the driver took."""
    from pipelines import stream

    stream.run_stream = functools.partial(stream.run_stream, decode=nothing_decoded)
    said = run(manifest, out, Job(crops=None), RunOptions(), say=silent)
    print(json.dumps({"peak_mb": peak_mb(), "failed": said["failed"], "shards": len(Products(Store(out)).shards())}))


def manifest_of(path: Path, videos: int) -> Path:
    write_manifest(
        (
            Video(
                video=f"part_{k // 1000:04d}/video_{k:07d}", uri=f"/data/part_{k // 1000:04d}/{k:07d}.mp4", label=k % 2
            )
            for k in range(videos)
        ),
        str(path),
    )
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_drivers_memory_does_not_grow_with_the_manifest(tmp_path: Path) -> None:
    small = elsewhere("run_nothing", manifest_of(tmp_path / "small.parquet", 1_000), tmp_path / "small")
    large = elsewhere("run_nothing", manifest_of(tmp_path / "large.parquet", 1_000_000), tmp_path / "large")
    assert (small["failed"], large["failed"]) == (1_000, 1_000_000)
    assert large["shards"] == 977
    print(small, large)
    assert large["peak_mb"] - small["peak_mb"] < 150, (small, large)


# Ray's object store.

_STORE_BYTES = 1024**3
_SIZES = {"1080p": (1920, 1080), "2160p": (3840, 2160)}


def run_watched(dataset: str, out: str) -> None:
    """A run on a Ray with a small object store; prints what the store held at most."""
    import ray
    from ray._private import internal_api

    internals: Any = internal_api  # untyped, like much of Ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=_STORE_BYTES, log_to_driver=False
    )
    state = internals.get_state_from_address(ray.get_runtime_context().gcs_address)
    capacity = internals.get_memory_info_reply(state).store_stats.object_store_bytes_avail
    used, spilled, over = [0], [0], threading.Event()

    def poll() -> None:
        while not over.wait(0.05):
            stats = internals.get_memory_info_reply(state).store_stats
            used.append(stats.object_store_bytes_used)
            spilled.append(stats.spilled_bytes_total)

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        said = run(dataset, out, Job(sampling=Sampling(frames=32)), RunOptions(), say=silent)
    finally:
        over.set()
        poller.join()
    created = internals.get_memory_info_reply(state).store_stats.cumulative_created_bytes
    ray.shutdown()
    about = {"peak": max(used), "capacity": capacity, "spilled": max(spilled), "created": created, "polls": len(used)}
    print(json.dumps({**about, "failed": said["failed"]}))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", _SIZES)
def test_the_object_store_stays_almost_empty(size: str, tmp_path: Path) -> None:
    width, height = _SIZES[size]
    encoding = Encoding("fast", "libx264", ".mp4", options={"preset": "ultrafast", "g": "8"})
    (tmp_path / "dataset" / "real").mkdir(parents=True)
    images = filmed(40, width, height)
    first = clip(tmp_path / "dataset/real/0", encoding, frames=40, images=images, width=width, height=height)
    for k in range(1, 4):
        shutil.copy(first, first.with_name(f"{k}.mp4"))
    said = elsewhere("run_watched", tmp_path / "dataset", tmp_path / "out")
    print(size, said)
    assert said["failed"] == 0
    assert {row["decoded"] for row in rows(tmp_path / "out", "videos")} == {32}
    assert said["polls"] > 50
    assert said["created"] > 3 * 32 * width * height * 1.5, "the frames did not go through the store"
    assert said["spilled"] == 0
    assert said["peak"] < said["capacity"] / 4, said
