import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import datasets
from unmask.errors import StorageError, UsageError
from unmask.manifest import MANIFEST, ROW_GROUP, Manifest, Video, split_uri, video_id, write_manifest

NAMES = st.text(st.characters(exclude_characters="\\/;", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
PARTS = NAMES.filter(lambda name: name.strip() == name and name not in {".", ".."} and len(name.encode()) <= 200)
TEXTS = st.none() | PARTS
VIDEOS = st.builds(
    Video,
    video=st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    uri=PARTS.map("/data/{}.mp4".format),
    label=st.sampled_from([0, 1, None]),
    mos=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    method=TEXTS,
    compression=TEXTS,
    identity=st.lists(PARTS, max_size=2).map(tuple),
    source=TEXTS,
    split=st.sampled_from(["train", "val", "test", None]),
    part=TEXTS,
)


def many(count: int) -> Iterator[Video]:
    for i in range(count):
        yield Video(video=f"part/{i:07d}", uri=f"/data/part/{i:07d}.mp4", label=i % 2, identity=(f"p{i % 7}",))


@pytest.mark.parametrize("name", ["a", "Deepfakes/c23/519_515", "a b/ü.mov", "..a", "a..", "日本/1"])
def test_ids_that_are_safe_as_paths_are_taken(name: str) -> None:
    assert Video(video=name, uri="/x").video == name


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\nb", "a\x00", "\ud800", "x" * 201, "a/" * 600 + "a"],
)
@pytest.mark.parametrize("column", ["video", "source"])
def test_ids_that_could_leave_their_folder_are_refused(column: str, name: str) -> None:
    with pytest.raises(UsageError, match=rf"^{column} "):
        Video(**{"video": "a", "uri": "/x", column: name})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("uri", ""),
        ("uri", "a\nb"),
        ("label", 2),
        ("mos", float("nan")),
        ("mos", float("inf")),
        ("split", "dev"),
        ("identity", ("",)),
        ("identity", ("a;b",)),
    ],
)
def test_values_out_of_range_are_refused(column: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"^{column} "):
        Video(**{"video": "a", "uri": "/x", column: value})  # type: ignore[arg-type]


def test_ids_of_files_differ_when_the_files_do() -> None:
    assert [video_id(p) for p in ("a/b.mp4", "a/b.MP4", "a/b.mov", "a/.mp4", "b")] == [
        "a/b",
        "a/b",
        "a/b.mov",
        "a/.mp4",
        "b",
    ]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("x.csv", (".", "x.csv")),
        ("/x.csv", ("/", "x.csv")),
        ("/a/b?.csv", ("/a", "b?.csv")),
        ("s3://bucket/a/x.csv", ("s3://bucket/a", "x.csv")),
        ("s3://bucket/x.csv?region=eu", ("s3://bucket?region=eu", "x.csv")),
        ("memory://x.csv", ("memory://", "x.csv")),
    ],
)
def test_a_uri_splits_into_folder_and_name(uri: str, expected: tuple[str, str]) -> None:
    assert split_uri(uri) == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(VIDEOS, max_size=8, unique_by=lambda v: v.video))
def test_videos_come_back_from_parquet_and_csv(tmp_path_factory: pytest.TempPathFactory, videos: list[Video]) -> None:
    folder = tmp_path_factory.mktemp("manifests")
    assert write_manifest(videos, f"{folder}/m.parquet") == len(videos)
    with Manifest(f"{folder}/m.parquet") as manifest:
        assert list(manifest) == videos
        assert manifest.table(0, len(videos)).schema.equals(MANIFEST)
    write_manifest(videos, f"{folder}/m.csv")
    if videos:
        assert list(datasets.read(f"{folder}/m.csv").videos) == videos
        assert list(datasets.read(f"{folder}/m.parquet").videos) == videos


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_repeated_id_is_refused_with_both_places_and_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    twice = [*many(5), Video(video="part/0000002", uri="/other.mp4")]
    with pytest.raises(UsageError, match=r"'part/0000002': row 3 \(/data/part/0000002.mp4\) and row 6 \(/other.mp4\)"):
        write_manifest(twice, str(path))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    write_manifest(many(3), str(path))
    before = path.read_bytes()

    def failing() -> Iterator[Video]:
        yield from many(2)
        raise RuntimeError("the reader broke")

    with pytest.raises(RuntimeError):
        write_manifest(failing(), str(path))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]


def test_ranges_are_those_of_the_list(tmp_path: Path) -> None:
    count = 2 * ROW_GROUP + 10
    videos = list(many(count))
    write_manifest(videos, f"{tmp_path}/m.parquet")
    with Manifest(f"{tmp_path}/m.parquet") as manifest:
        assert len(manifest) == count
        for start, stop in [
            (0, 64),
            (ROW_GROUP - 3, ROW_GROUP + 3),
            (100, 2 * ROW_GROUP + 5),
            (count - 2, count + 9),
            (5, 5),
            (count, count + 1),
        ]:
            assert manifest.read(start, stop) == videos[start:stop]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak_bytes(count: int) -> int:
        tracemalloc.start()
        arrow = pa.total_allocated_bytes()
        uri = f"{tmp_path}/{count}.parquet"
        write_manifest(many(count), uri)
        with Manifest(uri) as manifest:
            for start in range(0, count, ROW_GROUP):
                assert manifest.table(start, start + 64).num_rows
                assert pa.total_allocated_bytes() - arrow < 8e6
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    small, large = peak_bytes(2 * ROW_GROUP), peak_bytes(8 * ROW_GROUP)
    assert large - small < 40 * 6 * ROW_GROUP  # the hashes of ids and their sort, no rows


def test_manifests_lie_in_any_file_system() -> None:
    memory = fsspec.filesystem("memory")
    memory.makedirs("/manifests", exist_ok=True)
    videos = list(many(10))
    write_manifest(videos, "memory://manifests/m.parquet")
    with Manifest("memory://manifests/m.parquet") as manifest:
        assert manifest.read(3, 5) == videos[3:5]
    memory.rm("/manifests", recursive=True)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"video": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="is no Parquet file"):
        Manifest(f"{tmp_path}/text.parquet")
    with pytest.raises(UsageError, match="its column uri is missing"):
        Manifest(f"{tmp_path}/other.parquet")
    with pytest.raises(StorageError, match="gone"):
        Manifest(f"{tmp_path}/gone.parquet")
