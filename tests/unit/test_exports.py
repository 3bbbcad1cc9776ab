import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.exports import ExportCount, export_deepfakebench, export_dfdc
from pipelines.masks import Originals, write_masks
from tests.products import BOX, Clip, faked, finished_run
from unmask.errors import StorageError, UsageError
from unmask.products import Products
from unmask.storage import Store

RIGHT = (200.0, 50.0, 260.0, 130.0)
# Of the face in BOX, as shares of the box, in the order of the detector.
SHARES = np.array([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)])


def run(tmp_path: Path, clips: list[Clip], *, with_masks: bool = False, **options: Any) -> Products:
    products = finished_run(Store(tmp_path / "run"), clips, **options)
    if with_masks:
        originals = Originals.of(products)
        for shard in products.shards():
            write_masks(products.store, shard, originals)
    return products


def dfdc_clips() -> list[Clip]:
    two = {0: [BOX, RIGHT], 10: [BOX], 20: [BOX]}
    return [
        Clip(video="real", columns={"label": 0}, faces=two, corrupt=frozenset({20})),
        Clip(video="fake", columns={"label": 1, "source": "real"}, faces={0: [BOX, RIGHT], 10: [BOX]}, picture=faked),
        Clip(
            video="alone", columns={"label": 1, "source": "elsewhere"}, uri="s3://bucket/part_7/alone.mp4?versionId=3"
        ),
        Clip(video="unknown", columns={}),
        Clip(video="broken", columns={"label": 0}, faces={}, status="failed"),
        Clip(video="nobody", columns={"label": 0}, faces={}, status="empty"),
    ]


FOLDS = {"real": 3, "fake": 3, "alone": 5, "nobody": 0}


def winners_samples(root: Path) -> Iterator[tuple[dict[str, str], NDArray[np.uint8], Any, Any]]:
    """What the winner's trainer finds for each row of the table: the crop, the mask, the landmarks of the original."""
    with (root / "folds.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            stem = row["file"].removesuffix(".png")
            image_HWC = cv2.imread(str(root / "crops" / row["video"] / row["file"]))
            assert image_HWC is not None
            mask_HW = cv2.imread(str(root / "diffs" / row["video"] / f"{stem}_diff.png"), cv2.IMREAD_GRAYSCALE)
            points = root / "landmarks" / row["original"] / f"{stem}.npy"
            yield row, image_HWC, mask_HW, np.load(points) if points.exists() else None


@pytest.mark.parametrize("packing", ["tar", "files"])
def test_the_winner_s_trainer_finds_everything(packing, tmp_path) -> None:
    products = run(tmp_path, dfdc_clips(), with_masks=True, packing=packing)
    root = tmp_path / "out"
    count = export_dfdc(products, Store(root), FOLDS)
    assert count == ExportCount(videos=3, crops=8, diffs=3, left_out={"corrupt_frame": 1, "unlabelled": 2})

    crops = {row["crop"]: image for s in products.shards() for row, image in products.crops(products.faces(s))}
    samples = list(winners_samples(root))
    assert len(samples) == 8
    for row, image_HWC, mask_HW, points_K2 in samples:
        frame, face = map(int, row["file"].removesuffix(".png").split("_"))
        assert int(row["frame"]) == frame
        expected_HWC = crops[f"{row['video']}/{frame:06d}_{face}.png"]
        np.testing.assert_array_equal(image_HWC[..., ::-1], expected_HWC)
        assert (mask_HW is not None) == (row["video"] == "fake")
        if mask_HW is not None:
            assert mask_HW.shape == image_HWC.shape[:2]
        if row["original"] == "real":
            assert points_K2.dtype == np.int16
            x1, y1, x2, y2 = BOX if face == 0 else RIGHT
            side = round(1.3 * max(x2 - x1, y2 - y1))
            centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
            wanted_K2 = (x1, y1) + SHARES * (x2 - x1, y2 - y1) - (centre - side / 2)
            np.testing.assert_allclose(points_K2, wanted_K2, atol=1.01)
    rows = {(r["video"], r["label"], r["original"], r["fold"]) for r, *_ in samples}
    assert rows == {("real", "0", "real", "3"), ("fake", "1", "real", "3"), ("alone", "1", "elsewhere", "5")}


def test_boxes_are_in_half_resolution(tmp_path) -> None:
    export_dfdc(run(tmp_path, dfdc_clips()), Store(tmp_path / "out"), FOLDS)
    boxes = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out/boxes").iterdir()}
    assert boxes.keys() == {"real", "fake", "alone", "nobody"}
    half, half_right = [v / 2 for v in BOX], [v / 2 for v in RIGHT]
    assert boxes["real"] == {"0": [half, half_right], "10": [half], "20": None}
    assert boxes["nobody"] == {}


def test_without_folds_there_is_no_table_and_a_second_time_changes_nothing(tmp_path) -> None:
    products, out = run(tmp_path, dfdc_clips()), Store(tmp_path / "out")
    first = export_dfdc(products, out)
    files = {name: out.read(name) for name in out.names(deep=True)}
    assert "folds.csv" not in files
    assert {name.split("/")[0] for name in files} == {"boxes", "crops", "landmarks"}
    assert export_dfdc(products, out) == first
    assert {name: out.read(name) for name in out.names(deep=True)} == files


def test_other_image_formats_become_png(tmp_path) -> None:
    products = run(tmp_path, dfdc_clips()[:1], image_format="jpg")
    export_dfdc(products, Store(tmp_path / "out"))
    row, image_HWC = next(products.crops(products.faces(0)))
    data = (tmp_path / "out/crops/real/0_0.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], image_HWC)
    assert row["crop"].endswith(".jpg")


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ({**FOLDS, "fake": 4}, "fake is in fold 4 and its original real in fold 3"),
        ({"real": 0, "fake": 0}, "alone has no fold"),
    ],
)
def test_folds_that_leak_or_lack_are_refused(folds, message, tmp_path) -> None:
    with pytest.raises(UsageError, match=message):
        export_dfdc(run(tmp_path, dfdc_clips()), Store(tmp_path / "out"), folds)
    assert not (tmp_path / "out").exists()


def test_two_videos_of_one_file_name_are_refused(tmp_path) -> None:
    clips = [Clip(video=f"{m}/c23/000_003", columns={"label": 1}) for m in ("Deepfakes", "FaceSwap")]
    with pytest.raises(UsageError, match="Deepfakes/c23/000_003 and FaceSwap/c23/000_003 are both '000_003'"):
        export_dfdc(run(tmp_path, clips), Store(tmp_path / "out"))


@pytest.mark.parametrize("export", [export_dfdc, lambda p, o: export_deepfakebench(p, o, "DFDC", splits=SPLITS)])
def test_missing_and_damaged_crops(export, tmp_path) -> None:
    with pytest.raises(StorageError, match="holds no crops"):
        export(run(tmp_path, dfdc_clips()[:1], packing="none"), Store(tmp_path / "out"))
    products = finished_run(Store(tmp_path / "other"), dfdc_clips()[:1], image_format="jpg")
    tar = tmp_path / "other/crops/00000.tar"
    data = tar.read_bytes()
    tar.write_bytes(b"\0" * len(data))
    with pytest.raises(StorageError, match="damaged"):
        export(products, Store(tmp_path / "out"))
    tar.write_bytes(data[:1000])
    with pytest.raises(StorageError, match="cut off"):
        export(products, Store(tmp_path / "out"))
    assert not (tmp_path / "out/folds.csv").exists()


# DeepfakeBench's config/train_config.yaml.
LABEL_DICT = {"FF-real": 0, "FF-DF": 1, "FF-F2F": 1, "FF-FS": 1, "FF-NT": 1, "FF-FH": 1, "DFD_real": 0, "DFD_fake": 1}
LABEL_DICT |= {"CelebDFv2_real": 0, "CelebDFv2_fake": 1, "DFDC_Real": 0, "DFDC_Fake": 1}
COMPRESSED = {"FF-DF", "FF-F2F", "FF-FS", "FF-NT", "FaceForensics++", "DeepFakeDetection", "FaceShifter"}
SPLITS = {"real": "train", "fake": "test", "alone": "val"}


def benchmark_samples(root: Path, dataset: str, mode: str, compression: str = "c23") -> list[tuple[str, int, str]]:
    """What DeepfakeBench's loader collects for a dataset: path, label, name of the video."""
    info = json.loads((root / f"dataset_json/{dataset}.json").read_text())
    samples = []
    for label in info[dataset]:
        videos = info[dataset][label][mode]
        videos = videos[compression] if dataset in COMPRESSED else videos
        for name, video in videos.items():
            assert int(video["frames"][0].split("/")[-1].split(".")[0]) >= 0
            samples += [(path, LABEL_DICT[video["label"]], f"{video['label']}_{name}") for path in video["frames"]]
    return samples


def loaded(path: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What it loads for one path, from the folder that it runs in."""
    assert path[0] == "."
    image_HWC = cv2.imread(path)
    assert image_HWC is not None
    return image_HWC, np.float32(np.load(path.replace("frames", "landmarks").replace(".png", ".npy")))


def ff_clips() -> list[Clip]:
    def made(video: str, split: str | None, **columns: Any) -> Clip:
        return Clip(video=video, columns={"compression": video.split("/")[1], "split": split, **columns})

    both = [
        clip
        for c in ("c23", "c40")
        for clip in (
            made(f"youtube/{c}/000", "train", label=0),
            made(f"Deepfakes/{c}/000_003", "train", label=1, method="Deepfakes", source=f"youtube/{c}/000"),
        )
    ]
    return [
        *both,
        made("youtube/c23/005", "test", label=0),
        made("FaceSwap/c23/000_003", "train", label=1, method="FaceSwap", source="youtube/c23/000"),
        made("FaceShifter/c23/005_010", "test", label=1, method="FaceShifter"),
    ]


def test_deepfakebench_loads_faceforensics(tmp_path, monkeypatch) -> None:
    products, root = run(tmp_path, ff_clips()), tmp_path / "datasets/rgb"
    count = export_deepfakebench(products, Store(root), "FaceForensics++")
    assert count == ExportCount(videos=7, crops=14)
    names = {"FaceForensics++", "FF-DF", "FF-FS", "FaceShifter"}
    assert {p.stem for p in (root / "dataset_json").iterdir()} == names
    monkeypatch.chdir(tmp_path)
    train = benchmark_samples(root, "FaceForensics++", "train")
    assert {(label, video) for _, label, video in train} == {
        (0, "FF-real_000"),
        (1, "FF-DF_000_003"),
        (1, "FF-FS_000_003"),
    }
    assert [video for *_, video in benchmark_samples(root, "FaceForensics++", "test")] == ["FF-real_005"] * 2
    assert benchmark_samples(root, "FF-DF", "val") == []
    assert len(benchmark_samples(root, "FF-DF", "train", "c40")) == 4
    assert {v for *_, v in benchmark_samples(root, "FaceShifter", "test")} == {"FF-real_005", "FF-FH_005_010"}
    paths = [path for path, *_ in train]
    assert "./datasets/rgb/FaceForensics++/manipulated_sequences/Deepfakes/c23/frames/000_003/010.png" in paths
    assert "./datasets/rgb/FaceForensics++/original_sequences/youtube/c23/frames/000/000.png" in paths
    assert len(set(paths)) == len(paths) == 6
    for path in paths:
        image_HWC, points_K2 = loaded(path)
        assert image_HWC.shape == (256, 256, 3)
        # The box is 100 x 130 in a crop of 169 pixels.
        size = np.array([100, 130]) / 169 * 256
        np.testing.assert_allclose(points_K2, 128 + (SHARES - 0.5) * size, atol=1.5)


def test_landmarks_move_with_the_picture(tmp_path, monkeypatch) -> None:
    """A dot painted on a landmark of the frame is found at the exported landmark of the exported picture."""

    def dotted(frame: int) -> NDArray[np.uint8]:
        image_HWC = np.zeros((240, 320, 3), np.uint8)
        x, y = (int(BOX[0] + 0.3 * 100), int(BOX[1] + 0.4 * 130))
        image_HWC[y - 1 : y + 2, x - 1 : x + 2] = 255
        return image_HWC

    clip = Clip(video="real/one", picture=dotted, columns={"label": 0, "split": "test"})
    monkeypatch.chdir(tmp_path)
    for side_px in (None, 256, 400):
        products = finished_run(Store(tmp_path / f"run{side_px}"), [clip], side_px=side_px)
        root = Path(f"./out{side_px}")
        export_deepfakebench(products, Store(root), "DFDC", root=f"./{root}")
        image_HWC, points_K2 = loaded(benchmark_samples(root, "DFDC", "test")[0][0])
        ys, xs = np.nonzero(image_HWC[..., 0] > 127)
        np.testing.assert_allclose(points_K2[0], (xs.mean(), ys.mean()), atol=0.6)


def test_deepfakebench_gets_one_face_a_frame_and_no_damaged_one(tmp_path, monkeypatch) -> None:
    small_first = {0: [RIGHT, BOX], 10: [BOX], 20: [BOX]}
    clips = [
        Clip(
            video="Celeb-real/id0_0000",
            columns={"label": 0, "split": "test"},
            faces=small_first,
            corrupt=frozenset({20}),
        ),
        Clip(video="Celeb-synthesis/id0_id1_0000", columns={"label": 1, "split": "test"}),
        Clip(video="YouTube-real/frames of.png", columns={"label": 0, "split": "train"}),
        Clip(video="none", faces={}, status="empty", columns={"label": 0}),
        Clip(video="unknown", columns={"split": "test"}),
    ]
    products, root = run(tmp_path, clips), tmp_path / "rgb"
    count = export_deepfakebench(products, Store(root), "Celeb-DF-v2", root="./rgb")
    left_out = {"other_face": 1, "corrupt_frame": 1, "unlabelled": 2}
    assert count == ExportCount(videos=3, crops=6, left_out=left_out)
    monkeypatch.chdir(tmp_path)
    test, train = (benchmark_samples(root, "Celeb-DF-v2", mode) for mode in ("test", "train"))
    assert [path for path, *_ in test] == [
        f"./rgb/Celeb-DF-v2/{folder}/frames/{name}/{frame}.png"
        for folder, name in (("Celeb-real", "id0_0000"), ("Celeb-synthesis", "id0_id1_0000"))
        for frame in ("000", "010")
    ]
    # The largest face, although it is the second most probable: its crop is BOX's.
    _, points_K2 = loaded(test[0][0])
    np.testing.assert_allclose(points_K2, 128 + (SHARES - 0.5) * np.array([100, 130]) / 169 * 256, atol=1.5)
    # A name that the loader's replacing of words in paths changes, too.
    assert [loaded(path)[1].shape for path, *_ in train] == [(5, 2)] * 2


def test_names_that_videos_share_are_made_whole(tmp_path, monkeypatch) -> None:
    clips = [Clip(video=f"{a}/{b}/1", columns={"label": i}) for i, a in enumerate(("real", "fake")) for b in "xy"]
    splits = {clip.video: "train" for clip in clips}
    export_deepfakebench(run(tmp_path, clips), Store(tmp_path / "out"), "DFDC", splits=splits)
    names = {video for *_, video in benchmark_samples(tmp_path / "out", "DFDC", "train")}
    assert names == {f"DFDC_{k}_{k.lower()}_{b}_1" for k in ("Real", "Fake") for b in "xy"}


@pytest.mark.parametrize(
    ("clip", "options", "message"),
    [
        (Clip(video="a", columns={"label": 0}), {"dataset_name": "DFDC"}, "the split of a is None"),
        (Clip(video="a", columns={"label": 0}), {"dataset_name": "DFDC", "splits": {"a": "dev"}}, "'dev'"),
        (Clip(video="a", columns={"label": 0, "split": "val"}), {"dataset_name": "FaceForensics++"}, "no compression"),
        (
            Clip(video="a", columns={"label": 1, "split": "val", "compression": "c23", "method": "New"}),
            {"dataset_name": "FaceForensics++"},
            "is made by 'New'",
        ),
        (Clip(video="a", columns={"label": 0}), {"dataset_name": "FF-DF"}, "is part of FaceForensics"),
        (Clip(video="a", columns={"label": 0}), {"dataset_name": "../x"}, "the dataset's name"),
        (Clip(video="a", columns={"label": 0}), {"dataset_name": "DFDC", "root": "/data"}, "root is '/data'"),
        (Clip(video="a", columns={"label": 0}), {"dataset_name": "DFDC", "root": "./frames"}, "root is './frames'"),
        (Clip(video="a", columns={}), {"dataset_name": "DFDC"}, "no labelled face"),
    ],
)
def test_what_the_layout_has_no_room_for_is_refused(clip, options, message, tmp_path) -> None:
    with pytest.raises(UsageError, match=message):
        export_deepfakebench(run(tmp_path, [clip]), Store(tmp_path / "out"), **options)
    assert not (tmp_path / "out/dataset_json").exists()


def test_two_names_that_become_one_are_refused(tmp_path) -> None:
    clips = [Clip(video=v, columns={"label": 0, "split": "val"}) for v in ("a_b/c", "a/b/c", "a/b_c/d", "a_b_c/d")]
    with pytest.raises(UsageError, match="would share the folder"):
        export_deepfakebench(run(tmp_path, clips), Store(tmp_path / "out"), "DFDC")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
