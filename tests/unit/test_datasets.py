import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import fsspec
import pytest

from pipelines import datasets
from pipelines.datasets import KINDS, Listing, Note
from unmask.errors import StorageError, UsageError
from unmask.manifest import Video, write_manifest

Lay = Callable[[Mapping[str, object]], str]


@pytest.fixture(params=["local", "memory"])
def lay(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lay]:
    """Lays files out in a folder, on disk or in fsspec's file system in memory; gives its address."""
    memory = fsspec.filesystem("memory")

    def lay_out(files: Mapping[str, object]) -> str:
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            if request.param == "memory":
                memory.pipe(f"/data/{name}", text.encode())
            else:
                (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "data" / name).write_text(text)
        return "memory://data" if request.param == "memory" else str(tmp_path / "data")

    yield lay_out
    if memory.exists("/data"):
        memory.rm("/data", recursive=True)


def by_id(listing: Listing) -> dict[str, Video]:
    return {v.video: v for v in listing.videos}


def noted(listing: Listing, text: str) -> Note:
    (found,) = [n for n in listing.notes if text in n.text]
    return found


DFDC = {
    "dfdc_train_part_0/metadata.json": {
        "aaa.mp4": {"label": "FAKE", "split": "train", "original": "rrr.mp4"},
        "rrr.mp4": {"label": "REAL", "split": "train", "original": None},
        "gone.mp4": {"label": "FAKE", "split": "train", "original": "rrr.mp4"},
    },
    "dfdc_train_part_0/aaa.mp4": "",
    "dfdc_train_part_0/rrr.mp4": "",
    "dfdc_train_part_0/extra.mp4": "",
    "dfdc_train_part_12/metadata.json": {"bbb.mp4": {"label": "FAKE", "split": "train", "original": "lost.mp4"}},
    "dfdc_train_part_12/bbb.mp4": "",
}


def test_dfdc(lay: Lay) -> None:
    uri = lay(DFDC)
    listing = datasets.read(uri)
    assert listing.dataset == datasets.detect(uri) == "dfdc"
    videos = by_id(listing)
    assert list(videos) == ["aaa", "bbb", "rrr"]
    assert videos["aaa"] == Video(
        video="aaa",
        uri=f"{uri}/dfdc_train_part_0/aaa.mp4",
        label=1,
        identity=("rrr",),
        source="rrr",
        split="train",
        part="0",
    )
    assert (videos["rrr"].label, videos["rrr"].identity, videos["rrr"].source) == (0, ("rrr",), None)
    assert (videos["bbb"].source, videos["bbb"].part) == ("lost", "12")
    assert noted(listing, "absent on disk") == Note(
        "listed and absent on disk, left out", 1, ("dfdc_train_part_0/gone.mp4",)
    )
    assert noted(listing, "not listed").examples == ("dfdc_train_part_0/extra.mp4",)
    assert noted(listing, "whose original").examples == ("bbb",)


def test_dfdc_one_part_alone(lay: Lay) -> None:
    videos = by_id(datasets.read(f"{lay(DFDC)}/dfdc_train_part_12"))
    assert (list(videos), videos["bbb"].part) == (["bbb"], "12")


@pytest.mark.parametrize(
    "files",
    [
        {"labels.csv": "filename,label\na.mp4,1\nb.mp4,0\n"},
        {"labels.csv": "filename,label,original\na.mp4,FAKE,\nb.mp4,REAL,NA\n"},
        {"labels.csv": "label,filename\n1,a.mp4\n0,b.mp4\n0\n"},
        {"metadata.json": {"a.mp4": {"is_fake": 1, "augmentations": {}}, "b.mp4": {"is_fake": 0}}},
        {
            "metadata.json": {"a.mp4": {"label": "FAKE"}, "b.mp4": {"label": None}},
            "labels.csv": "filename,label\nb.mp4,0",
        },
    ],
)
def test_dfdc_test_sets(lay: Lay, files: Mapping[str, object]) -> None:
    listing = datasets.read(lay({"a.mp4": "", "b.mp4": "", **files}))
    assert listing.dataset == "dfdc"
    assert [(v.video, v.label, v.identity, v.source, v.part) for v in listing.videos] == [
        ("a", 1, (), None, None),
        ("b", 0, ("b",), None, None),
    ]


def test_dfdc_descriptions_that_contradict_or_are_damaged_are_refused(lay: Lay) -> None:
    uri = lay({"a.mp4": "", "metadata.json": {"a.mp4": {"label": "FAKE"}}, "labels.csv": "filename,label\na.mp4,0\n"})
    with pytest.raises(UsageError, match=r"labels.csv says label 0 of a.mp4 and metadata.json 1"):
        datasets.read(uri)
    lay({"metadata.json": {"a.mp4": {"label": "MAYBE"}}})
    with pytest.raises(UsageError, match=r"metadata.json, a.mp4: label is 'MAYBE'"):
        datasets.read(uri)
    lay({"metadata.json": '{"a.mp4": {"lab'})
    with pytest.raises(UsageError, match=r"metadata.json is no JSON"):
        datasets.read(uri)


FFPP = {
    f"{folder}/{compression}/videos/{name}.mp4": ""
    for compression in ("c23", "raw")
    for folder, name in [
        ("original_sequences/youtube", "519"),
        ("original_sequences/youtube", "515"),
        ("original_sequences/actors", "01__outside_talking_still_laughing"),
        ("manipulated_sequences/Deepfakes", "519_515"),
        ("manipulated_sequences/FaceShifter", "515_519"),
        ("manipulated_sequences/DeepFakeDetection", "01_02__outside_talking_still_laughing__YVGY8LOK"),
    ]
} | {
    "manipulated_sequences/Deepfakes/masks/videos/519_515.mp4": "",
    "manipulated_sequences/Deepfakes/c23/videos/odd.mp4": "",
    "downloads/x.mp4": "",
}
SPLITS = {
    "splits/train.json": [["071", "054"]],
    "splits/val.json": [["720", "672"]],
    "splits/test.json": [["519", "515"]],
}


def test_ffpp(lay: Lay) -> None:
    uri = lay(FFPP | SPLITS)
    listing = datasets.read(uri)
    assert listing.dataset == datasets.detect(uri) == "ffpp"
    videos = by_id(listing)
    assert len(videos) == 13
    assert videos["Deepfakes/c23/519_515"] == Video(
        video="Deepfakes/c23/519_515",
        uri=f"{uri}/manipulated_sequences/Deepfakes/c23/videos/519_515.mp4",
        label=1,
        method="Deepfakes",
        compression="c23",
        identity=("519", "515"),
        source="youtube/c23/519",
        split="test",
    )
    assert videos["youtube/raw/519"].identity == ("519",)
    assert (videos["youtube/raw/519"].label, videos["youtube/raw/519"].split) == (0, "test")
    actors = videos["DeepFakeDetection/raw/01_02__outside_talking_still_laughing__YVGY8LOK"]
    assert (actors.identity, actors.split) == (("01", "02"), None)
    assert actors.source in videos
    assert videos[actors.source or ""].identity == ("01",)
    assert noted(listing, "outside").examples == ("downloads/x.mp4",)
    assert noted(listing, "neither person nor pair").count == 1
    assert not any("split" in n.text for n in listing.notes)


@pytest.mark.parametrize("inner", ["manipulated_sequences", "manipulated_sequences/Deepfakes"])
def test_ffpp_is_read_from_a_folder_inside_it(lay: Lay, inner: str) -> None:
    uri = f"{lay(FFPP)}/{inner}"
    if inner.endswith("Deepfakes"):
        with pytest.raises(UsageError, match="laid out like none"):
            datasets.read(uri)
    else:
        assert "Deepfakes/raw/519_515" in by_id(datasets.read(uri))


def test_ffpp_says_that_it_has_no_official_split_and_refuses_a_damaged_one(lay: Lay) -> None:
    uri = lay(FFPP)
    listing = datasets.read(uri)
    assert noted(listing, "official split").count == 3
    assert {v.split for v in listing.videos} == {None}
    lay({"splits/val.json": ["071", ["054"]]})
    with pytest.raises(UsageError, match=r"val.json must be a list of pairs"):
        datasets.read(uri)


CELEBDF = {
    "Celeb-real/id0_0000.mp4": "",
    "Celeb-real/id1_0003.mp4": "",
    "Celeb-synthesis/id0_id1_0000.mp4": "",
    "Celeb-synthesis/id1_id0_0009.mp4": "",
    "YouTube-real/00170.mp4": "",
    "List_of_testing_videos.txt": (
        "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n1 Celeb-real/gone.mp4\n"
    ),
}


def test_celebdf(lay: Lay) -> None:
    uri = lay(CELEBDF)
    listing = datasets.read(uri)
    assert listing.dataset == datasets.detect(uri) == "celebdf"
    videos = by_id(listing)
    assert videos["Celeb-synthesis/id0_id1_0000"] == Video(
        video="Celeb-synthesis/id0_id1_0000",
        uri=f"{uri}/Celeb-synthesis/id0_id1_0000.mp4",
        label=1,
        identity=("id0", "id1"),
        source="Celeb-real/id0_0000",
        split="test",
    )
    real = videos["Celeb-real/id1_0003"]
    assert (real.label, real.identity, real.split) == (0, ("id1",), "train")
    youtube = videos["YouTube-real/00170"]
    assert (youtube.label, youtube.identity, youtube.split) == (0, (), "test")
    assert noted(listing, "listed for testing").examples == ("Celeb-real/gone.mp4",)
    assert noted(listing, "whose original").examples == ("Celeb-synthesis/id1_id0_0009",)


def test_celebdf_in_a_folder_below_without_a_list(lay: Lay) -> None:
    listing = datasets.read(lay({"Celeb-DF-v2/Celeb-real/id0_0000.mp4": "", "Celeb-DF-v2/readme.mp4": ""}))
    assert [(v.video, v.split) for v in listing.videos] == [("Celeb-real/id0_0000", None)]
    assert noted(listing, "no official split").count == 1
    assert noted(listing, "outside").count == 1


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("0 YouTube-real/00170.mp4", "there 1 means real"),
        ("YouTube-real/00170.mp4", "line 1 is"),
        ("1 x/0.mp4", "line 1"),
    ],
)
def test_celebdf_lists_that_are_wrong_are_refused(lay: Lay, line: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        datasets.read(lay(CELEBDF | {"List_of_testing_videos.txt": line}))


def test_celebdf_twice_is_refused(lay: Lay) -> None:
    with pytest.raises(UsageError, match=r"holds Celeb-DF twice, in v1 and v2"):
        datasets.read(lay({"v1/Celeb-real/id0_0000.mp4": "", "v2/Celeb-real/id0_0000.mp4": ""}))


DFGC = {
    "train_set/C1/1-2-3-submit-00000.mp4": "",
    "train_set/C2/1-1-4-submit-82495.mp4": "",
    "test_set1/C1/3-1-6-submit-73549.mp4": "",
    "test_set1/C3/odd.mp4": "",
    "label/train_set.csv": "file,mos\nC1/1-2-3-submit-00000.mp4,3.25\nC2/1-1-4-submit-82495.mp4,2\nC2/gone.mp4,1\n",
    "label/test_set1.txt": "C1/3-1-6-submit-73549.mp4\n",
    "label/Test1-labels.txt": "C1/3-1-6-submit-73549.mp4, 4.5\n",
    "crop/train_set_crop_box.csv": "file,X_left-top\nC1/1-2-3-submit-00000.mp4,0.2\n",
    "readme.txt": "Opinion scores, see the paper.\n",
}


def test_dfgc(lay: Lay) -> None:
    uri = lay(DFGC)
    listing = datasets.read(uri)
    assert listing.dataset == datasets.detect(uri) == "dfgc"
    videos = by_id(listing)
    assert videos["C1/1-2-3-submit-00000"] == Video(
        video="C1/1-2-3-submit-00000",
        uri=f"{uri}/train_set/C1/1-2-3-submit-00000.mp4",
        label=1,
        mos=3.25,
        method="00000",
        identity=("1-1", "1-2"),
        source="1-2-3",
        split="train",
        part="C1",
    )
    test = videos["C1/3-1-6-submit-73549"]
    assert (test.mos, test.split, test.identity) == (4.5, "test", ("3-1", "3-2"))
    assert noted(listing, "without a mean opinion score").examples == ("C3/odd.mp4",)
    assert noted(listing, "absent on disk").examples == ("C2/gone.mp4",)


@pytest.mark.parametrize(
    "table", ["filename,MOS\na.mp4,3\nb.mp4,x\n", "mos,name\n3,a.mp4\n,b.mp4\n", "a.mp4,3\nb.mp4\n"]
)
def test_dfgc_takes_any_table_of_names_and_scores(lay: Lay, table: str) -> None:
    listing = datasets.read(lay({"C1/a.mp4": "", "C1/b.mp4": "", "C1.csv": table}))
    assert listing.dataset == "dfgc"
    assert [(v.video, v.mos, v.split) for v in listing.videos] == [("C1/a", 3.0, None), ("C1/b", None, None)]


def test_dfgc_tables_that_contradict_are_refused(lay: Lay) -> None:
    uri = lay({"C1/1-1-1-submit-1.mp4": "", "a.csv": "file,mos\nC1/1-1-1-submit-1.mp4,3\n"})
    lay({"b.csv": "file,mos\nC1/1-1-1-submit-1.mp4,4\n"})
    with pytest.raises(UsageError, match=r"the mos 4.0, a.csv gives 3.0"):
        datasets.read(uri)
    lay({"b.csv": "", "train.txt": "C1/1-1-1-submit-1.mp4\n", "val.txt": "C1/1-1-1-submit-1.mp4\n"})
    with pytest.raises(UsageError, match="into two splits"):
        datasets.read(uri)


def test_folders_of_real_and_fake(lay: Lay) -> None:
    listing = datasets.read(
        lay(
            {
                "train/REAL/a.mp4": "",
                "train/1_fake/deep/a.mov": "",
                "validation/0_real/b.mp4": "",
                "c.mp4": "",
                ".x/d.mp4": "",
            }
        )
    )
    assert listing.dataset == "folder"
    assert [(v.video, v.label, v.split) for v in listing.videos] == [
        ("train/1_fake/deep/a.mov", 1, "train"),
        ("train/REAL/a", 0, "train"),
        ("validation/0_real/b", 0, "val"),
    ]
    assert str(listing.notes[0]) == "under no folder called real or fake, left out: 1 (c.mp4)"


def test_a_folder_of_anything_is_read_only_when_asked_for(lay: Lay) -> None:
    uri = lay({"a/clip.mp4": "", "b.webm": ""})
    with pytest.raises(UsageError, match=r"laid out like none .*DFDC.*FaceForensics.*--dataset"):
        datasets.detect(uri)
    assert [(v.video, v.label) for v in datasets.read(uri, "unlabelled").videos] == [("a/clip", None), ("b.webm", None)]


def test_two_datasets_in_one_folder_are_told_apart_by_the_option(lay: Lay) -> None:
    uri = lay(FFPP | CELEBDF)
    with pytest.raises(UsageError, match=r"holds ffpp and celebdf; .*--dataset"):
        datasets.read(uri)
    assert len(list(datasets.read(uri, "celebdf").videos)) == 5


def test_what_gives_no_video_is_refused(lay: Lay) -> None:
    uri = lay({"a.mp4": "", "notes.txt": "nothing"})
    with pytest.raises(UsageError, match=r"gives no video as ffpp: outside .*: 1 \(a.mp4\)"):
        datasets.read(uri, "ffpp")
    with pytest.raises(UsageError, match=r"does not exist|is no folder"):
        datasets.read(f"{uri}/gone")
    with pytest.raises(UsageError, match=r"--dataset wild is not known; choose one of dfdc, ffpp"):
        datasets.read(uri, "wild")
    with pytest.raises(StorageError):
        datasets.read("nowhere://x")
    assert set(KINDS) == {"dfdc", "ffpp", "celebdf", "dfgc", "folder", "unlabelled", "table"}


def test_a_file_that_is_no_table_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match="is no folder"):
        datasets.read(str(tmp_path / "clip.mp4"))


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "store/real").mkdir(parents=True)
    (tmp_path / "store/real/a.mp4").write_bytes(b"")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/part").symlink_to("../store")
    (tmp_path / "store/real/up").symlink_to("../../data")
    (tmp_path / "store/real/b.mp4").symlink_to("a.mp4")
    assert [v.video for v in datasets.read(f"{tmp_path}/data").videos] == ["part/real/a", "part/real/b"]
    assert next(iter(datasets.read(f"{tmp_path}/data/../store").videos)).uri == f"{tmp_path}/store/real/a.mp4"


@pytest.mark.parametrize(("kind", "count"), [("dfdc", 3), ("ffpp", 7)])
def test_real_trees(shared_dir: Path, tmp_path: Path, kind: str, count: int) -> None:
    listing = datasets.read(str(shared_dir / "videos" / kind))
    assert listing.dataset == kind
    assert write_manifest(listing.videos, f"{tmp_path}/m.parquet") == count
    assert all(Path(v.uri).is_file() for v in listing.videos)
    assert all(v.identity and (v.source or v.label == 0) for v in listing.videos)


def test_a_url_of_a_local_folder_gives_plain_paths(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.mp4").write_bytes(b"")
    assert [v.uri for v in datasets.read(f"file://{tmp_path}").videos] == [f"{tmp_path}/real/a.mp4"]


def test_hidden_folders_above_the_dataset_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".cache/real/.trash").mkdir(parents=True)
    for name in ("real/a.mp4", "real/.b.mp4", "real/.trash/c.mp4"):
        (tmp_path / ".cache" / name).write_bytes(b"")
    assert [v.video for v in datasets.read(f"{tmp_path}/.cache").videos] == ["real/a"]


def test_photographs_are_clips_where_there_is_no_video(lay: Lay) -> None:
    files: dict[str, object] = {"real/a.jpg": "", "real/b.PNG": "", "real/list.txt": "", "fake/c.webp": ""}
    listing = datasets.read(lay(files))
    assert {v.video: v.label for v in listing.videos} == {"real/a.jpg": 0, "real/b.PNG": 0, "fake/c.webp": 1}
    beside = datasets.read(lay({**files, "real/d.mp4": ""}))
    assert [v.video for v in beside.videos] == ["real/d"]  # the others are thumbnails
