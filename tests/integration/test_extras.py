"""Pairs, masks, copies, folds, exports and scores, on real Ray processes."""

import csv
import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from pipelines.config import CropOptions, EmbedOptions, Job, ScoreOptions
from pipelines.extras import Extras
from pipelines.run import RunOptions, run
from pipelines.score import publish_scores
from tests.clips import clip
from tests.mixed import paired_dataset
from tests.portraits import filmed, scenery
from unmask.analysis import Analyzer
from unmask.folds import read_folds
from unmask.inputs import Source
from unmask.plan import Sampling
from unmask.presets import DEFAULT_MODEL
from unmask.products import Products
from unmask.storage import Store

pytestmark = pytest.mark.usefixtures("local_ray")

ASKED = ("status", "planned", "decoded", "faces", "frames", "frame_pts_s", "frame_reasons")
REAL, FAKE = "youtube/c23/000", "Deepfakes/c23/000_003"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paired_dataset(tmp_path_factory.mktemp("pairs") / "ffpp")


@pytest.fixture(scope="module")
def out(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with everything."""
    folder = tmp_path_factory.mktemp("everything") / "out"
    job = Job(sampling=Sampling(frames=5), crops=CropOptions(layout="files"), boxes_from_source=True)
    extras = Extras(folds=2, masks=True, copies=(23, 32), exports=("dfdc", "deepfakebench"))
    said: list[str] = []
    result = run(str(pairs), str(folder), job, RunOptions(), say=said.append, extras=extras)
    assert (result["failed"], result["copies_failed"]) == (0, 0), said
    return folder


def faces_of(out: Path, video: str) -> list[dict[str, Any]]:
    products = Products(Store(out))
    return [row for s in products.shards() for row in products.faces(s).to_pylist() if row["video"] == video]


def test_fakes_have_the_frames_and_boxes_of_their_originals(out: Path) -> None:
    real, fake = faces_of(out, REAL), faces_of(out, FAKE)
    assert len(real) == 5
    assert [(f["frame"], f["box"]) for f in fake] == [(f["frame"], f["box"]) for f in real]
    assert [f["crop_transform"] for f in fake] == [f["crop_transform"] for f in real]
    assert [f["landmarks"] for f in fake] != [f["landmarks"] for f in real]


def test_masks_show_what_was_changed(out: Path) -> None:
    for face in faces_of(out, FAKE):
        mask = cv2.imread(str(out / "masks" / FAKE / f"{face['frame']:06d}_{face['face']}_diff.png"), 0)
        assert mask.shape == (face["crop_height"], face["crop_width"])
        x, y = np.array([160, 120]) - (face["crop_transform"][2], face["crop_transform"][5])
        inside = mask[int(y) - 15 : int(y) + 15, int(x) - 15 : int(x) + 15].mean()
        rim = np.concatenate([mask[:8].ravel(), mask[-8:].ravel()]).mean()
        assert inside > 60 > 30 > rim


def test_copies_have_all_frames_and_fewer_bytes(out: Path, pairs: Path) -> None:
    source = pairs / "original_sequences/youtube/c23/videos/000.mp4"
    sizes = []
    for crf in (23, 32):
        copy = out / "copies" / str(crf) / f"{REAL}.mp4"
        with av.open(copy) as container:
            assert sum(1 for _ in container.decode(video=0)) == 40
        sizes.append(copy.stat().st_size)
    assert source.stat().st_size > 0
    assert sizes[1] < sizes[0]
    rows = [row for p in (out / "copies").glob("*.parquet") for row in Store(p.parent).read_table(p.name).to_pylist()]
    assert len(rows) == 8
    assert all(row["reason"] is None for row in rows)


def test_folds_keep_people_together(out: Path) -> None:
    folds, _ = read_folds(str(out / "folds.parquet"))
    assert set(folds.values()) == {0, 1}
    assert folds[REAL] == folds[FAKE]


def test_exports_lie_there(out: Path) -> None:
    dfdc = out / "exports" / "dfdc"
    boxes = json.loads((dfdc / "boxes" / "000.json").read_text())
    real = faces_of(out, REAL)
    np.testing.assert_allclose(boxes[str(real[0]["frame"])][0], np.array(real[0]["box"]) / 2, atol=1e-3)
    with (dfdc / "folds.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["video"] for row in table} == {"000", "101", "000_003", "101_102"}
    for row in table:
        assert (dfdc / "crops" / row["video"] / row["file"]).is_file()
    listings = {p.stem: p.read_text() for p in (out / "exports" / "deepfakebench").rglob("*.json")}
    assert "000_003" in listings["FF-DF"]
    assert "FF-DF" in listings["FaceForensics++"]


def test_more_can_be_asked_of_a_finished_run_and_nothing_is_done_twice(out: Path, pairs: Path) -> None:
    job = Job(sampling=Sampling(frames=5), crops=CropOptions(layout="files"), boxes_from_source=True)
    made = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.parts[-2] in {"23", "c23"}}
    extras = Extras(masks=True, copies=(23, 28))
    run(str(pairs), str(out), job, RunOptions(), say=lambda _: None, extras=extras)
    assert (out / "copies" / "28" / f"{REAL}.mp4").is_file()
    assert {p: p.stat().st_mtime_ns for p in made} == made


def test_batches_without_a_face_and_shorter_fakes(tmp_path: Path) -> None:
    """Half of a clip shows a face and half shows none; a fake that ends before its original; features of both."""
    tree = paired_dataset(tmp_path / "ffpp")
    fakes = tree / "manipulated_sequences" / "Deepfakes" / "c23" / "videos"
    images = [*filmed(40), *scenery(40)]
    clip(tree / "original_sequences/youtube/c23/videos/777", frames=80, images=images, width=320, height=240)
    clip(fakes / "777_778", frames=80, images=images, width=320, height=240)
    clip(fakes / "000_003", frames=20, images=images[:20], width=320, height=240)
    out = tmp_path / "out"
    job = Job(
        sampling=Sampling(every=1),
        boxes_from_source=True,
        embed=(EmbedOptions(model="mobilenetv3_small_050", pretrained=False),),
    )
    assert run(str(tree), str(out), job, RunOptions(), say=lambda _: None)["failed"] == 0
    store = Store(out)
    videos = [r for s in Products(store).shards() for r in Products(store).videos(s).to_pylist()]
    half, its_fake = (next(row for row in videos if row["video"].endswith(name)) for name in ("c23/777", "777_778"))
    assert (half["status"], half["planned"]) == ("done", 80)
    assert 35 <= half["faces"] < 60
    # Nothing that was asked for, and nothing that was found, tells which of them is the fake.
    assert {name: its_fake[name] for name in ASKED} == {name: half[name] for name in ASKED}
    assert [(f["frame"], f["box"]) for f in faces_of(out, its_fake["video"])] == [
        (f["frame"], f["box"]) for f in faces_of(out, half["video"])
    ]
    keys = [(row["frame"], row["face"]) for row in faces_of(out, FAKE)]
    assert keys
    assert len(set(keys)) == len(keys)
    assert max(frame for frame, _ in keys) == 19


@pytest.mark.parametrize("model", [pytest.param("mobilenetv3-small", marks=pytest.mark.slow), DEFAULT_MODEL])
def test_bulk_scores_are_those_of_one_file(pairs: Path, tmp_path: Path, model: str) -> None:
    (pairs / "manipulated_sequences/Deepfakes/c23/videos/104_105.mp4").write_text("no video")
    job = Job(sampling=Sampling(frames=6), crops=None, score=ScoreOptions(model=EmbedOptions(model=model)))
    said = run(str(pairs), str(tmp_path), job, RunOptions(), say=lambda _: None)
    assert said["failed"] == 1
    publish_scores(Store(tmp_path))
    analyzer = Analyzer.load(model)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 5
    for result in results:
        alone = analyzer.analyze(Source(result["input"]), job.sampling).score.to_json()
        alone.pop("timings_s")
        assert result["id"] == alone["id"] or result["status"] == "failed"
        assert result["verdict"] == alone["verdict"]
        assert result["frames"] == alone["frames"]
        assert result["warnings"] == list(alone["warnings"])
        if result["status"] == "scored":
            assert result["score"] == pytest.approx(alone["score"], abs=1e-6)
    with (tmp_path / "submission.csv").open() as file:
        table = {row["filename"]: float(row["label"]) for row in csv.DictReader(file)}
    assert table["104_105.mp4"] == 0.5
    assert len(table) == 5
    reasons = {
        row["uri"].rsplit("/")[-1]: row["reason"]
        for p in tmp_path.glob("scores/*.parquet")
        for row in Store(tmp_path).read_table(f"scores/{p.name}").to_pylist()
    }
    assert reasons["104_105.mp4"] == "not_a_video"
