from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import datasets
from unmask.errors import StorageError, UsageError
from unmask.manifest import Video


def csv(folder: Path, text: str) -> str:
    path = folder / "clips.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_column_of_paths_is_enough(tmp_path: Path) -> None:
    uri = csv(
        tmp_path, "uri\na.mp4\nsub/b.mov\n../c.mp4\n/data/x/d.mp4\ns3://bucket/e.mp4\nhttps://h.org/f.mp4?k=1\n\n"
    )
    listing = datasets.read(uri)
    assert listing.dataset == datasets.detect(uri) == "table"
    assert listing.notes == ()
    above = tmp_path.parent.as_posix()
    expected = [
        ("a", f"{tmp_path}/a.mp4"),
        ("sub/b.mov", f"{tmp_path}/sub/b.mov"),
        (f"{above[1:]}/c", f"{above}/c.mp4"),
        ("data/x/d", "/data/x/d.mp4"),
        ("bucket/e", "s3://bucket/e.mp4"),
        ("h.org/f", "https://h.org/f.mp4?k=1"),
    ]
    assert [(v.video, v.uri) for v in listing.videos] == expected
    assert [(v.video, v.uri) for v in listing.videos] == expected  # again from the start


def test_a_relative_name_of_the_table_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv(tmp_path, "uri\na.mp4\n")
    monkeypatch.chdir(tmp_path)
    assert [v.uri for v in datasets.read("clips.csv").videos] == [f"{tmp_path}/a.mp4"]


def test_a_file_url_gives_plain_paths(tmp_path: Path) -> None:
    uri = csv(tmp_path, "uri\na.mp4\n")
    assert [v.uri for v in datasets.read(f"file://{uri}").videos] == [f"{tmp_path}/a.mp4"]


def test_all_columns_and_their_other_names(tmp_path: Path) -> None:
    uri = csv(
        tmp_path,
        "\ufeffVideo, Filename ,LABEL,mos,method,identity,source,split,part,notes\n"
        "one,/a.mp4,FAKE,3.5,swap,p1; p2,two,test,7,seen\n"
        "two,/b.mp4,real,,,p1,,,,\n"
        "three,/c.mp4,1\n",
    )
    listing = datasets.read(uri)
    assert list(listing.videos) == [
        Video(
            video="one",
            uri="/a.mp4",
            label=1,
            mos=3.5,
            method="swap",
            identity=("p1", "p2"),
            source="two",
            split="test",
            part="7",
        ),
        Video(video="two", uri="/b.mp4", label=0, identity=("p1",)),
        Video(video="three", uri="/c.mp4", label=1),
    ]
    assert [str(n) for n in listing.notes] == ["columns that Unmask does not know, ignored: 1 (notes)"]


def test_a_column_of_the_very_name_goes_first(tmp_path: Path) -> None:
    listing = datasets.read(csv(tmp_path, "path,uri\n/old.mp4,/new.mp4\n"))
    assert [v.uri for v in listing.videos] == ["/new.mp4"]
    assert listing.notes[0].examples == ("path",)


def test_parquet_keeps_lists_and_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {"path": ["a.mp4", "b.mp4"], "label": [1, None], "identity": [["p", "q"], None], "mos": [1.5, 2.0]}
    )
    pq.write_table(table, tmp_path / "clips.parquet")
    videos = list(datasets.read(f"{tmp_path}/clips.parquet").videos)
    assert [(v.video, v.label, v.identity, v.mos) for v in videos] == [("a", 1, ("p", "q"), 1.5), ("b", None, (), 2.0)]


def test_tables_lie_in_any_file_system() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/deep/clips.csv", b"uri\na.mp4\n../b.mp4\n/root/c.mp4\n")
    found = [(v.video, v.uri) for v in datasets.read("memory://tables/deep/clips.csv").videos]
    assert found == [
        ("a", "memory://tables/deep/a.mp4"),
        ("tables/b", "memory://tables/b.mp4"),
        ("root/c", "/root/c.mp4"),
    ]
    memory.rm("/tables", recursive=True)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("uri,label\na.mp4,1\nb.mp4,maybe\n", r"clips.csv, row 3: label is 'maybe'"),
        ("uri,mos\na.mp4,high\n", r"row 2: mos is 'high'"),
        ("uri,mos\na.mp4,nan\n", r"row 2: mos is nan"),
        ("uri,split\na.mp4,dev\n", r"row 2: split is 'dev'"),
        ("uri,video\na.mp4,../b\n", r"row 2: video is '../b'"),
        ("uri,label\n,1\n", r"row 2: uri is empty"),
        ("file,label\na.mp4,1\n", r"clips.csv needs a column uri .*: file, label"),
        ("uri,label\n,\n", r"clips.csv has no row of values"),
        ("", r"clips.csv needs a column uri .*: none"),
    ],
)
def test_bad_values_are_named_with_their_row(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        list(datasets.read(csv(tmp_path, text)).videos)


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.parquet").write_text("text")
    (tmp_path / "latin.csv").write_bytes(b"uri\n\xe4.mp4\n")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        datasets.read(f"{tmp_path}/clips.parquet")
    with pytest.raises(UsageError, match="cannot be read as CSV in UTF-8"):
        list(datasets.read(f"{tmp_path}/latin.csv").videos)
    with pytest.raises(StorageError, match=r"gone\.csv"):
        datasets.read(f"{tmp_path}/gone.csv")
