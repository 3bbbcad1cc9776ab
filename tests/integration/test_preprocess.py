"""The whole stream, on real Ray processes: what it writes, and that how it was done makes no difference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import CropOptions, EmbedOptions, Job, Pools
from pipelines.run import RunOptions, run
from tests.mixed import BAD, GOOD
from unmask.detection import SCORING_THRESHOLDS
from unmask.errors import StorageError, UsageError
from unmask.faces import cut, enlarge
from unmask.mtcnn import MTCNN
from unmask.plan import Sampling
from unmask.products import FACES, Products
from unmask.records import Frame
from unmask.storage import Store
from unmask.video import VideoReader
from unmask.watch import Stopwatch, watch
from unmask.workers import Workers

pytestmark = pytest.mark.usefixtures("local_ray")

BACKBONE = "mobilenetv3_small_050"
JOB = Job(sampling=Sampling(frames=6), embed=(EmbedOptions(model=BACKBONE, pretrained=False),))
OPTIONS = RunOptions(shard_videos=3)


def silent(_: str) -> None:
    pass


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table, in the order of the shards."""
    return pa.concat_tables(
        [Store(out).read_table(f"{table}/{s:05d}.parquet") for s in Products(Store(out)).shards()]
    ).to_pylist()


@pytest.fixture(scope="module")
def whole(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The products of the mixed dataset."""
    out = tmp_path_factory.mktemp("whole") / "out"
    said = run(str(mixed), str(out), JOB, OPTIONS, say=silent)
    assert said["failed"] == sum(status == "failed" for status, _ in BAD.values())
    return out


def test_every_video_has_its_row_and_its_reason(whole: Path, mixed: Path) -> None:
    videos = {row["video"]: row for row in rows(whole, "videos")}
    files = {str(p.relative_to(mixed).with_suffix("")) for p in mixed.rglob("*.*")}
    assert set(videos) == files
    for name in GOOD:
        assert (videos[name]["status"], videos[name]["reason"]) == ("done", None), videos[name]
        assert videos[name]["planned"] == videos[name]["decoded"] == min(6, 5 if "short" in name else 6)
    faces = rows(whole, "faces")
    for name, row in videos.items():
        assert len(row["frames"]) == len(row["frame_pts_s"]) == len(row["frame_reasons"]) == row["planned"]
        assert row["frame_pts_s"] == sorted(row["frame_pts_s"])
        lost = [reason for reason in row["frame_reasons"] if reason is not None]
        assert lost.count("corrupt_frame") == row["corrupt"]
        assert {face["frame"] for face in faces if face["video"] == name} <= set(row["frames"])
    for name, expected in BAD.items():
        row = videos[name.removesuffix(".mp4")]
        assert (row["status"], row["reason"]) == expected, row
        assert row["message"].endswith(".")
    assert videos["fake/damaged"]["corrupt"] > 0
    assert videos["fake/cut"]["status"] == "done"
    assert videos["real/turned"]["width"] == 320
    assert {row["label"] for name, row in videos.items() if name.startswith("fake")} == {1}


def test_faces_are_those_that_the_core_finds(whole: Path, mixed: Path) -> None:
    found = rows(whole, "faces")
    assert len(found) > 40
    detector = MTCNN(thresholds=SCORING_THRESHOLDS)
    workers = Workers(detector.device)
    for name in GOOD:
        mine = iter([row for row in found if row["video"] == name])
        with VideoReader(mixed / f"{name}.mp4") as reader:
            for seen in watch(reader, JOB.sampling, detector, workers, Stopwatch()):
                for rank, sighting in enumerate(seen.sightings):
                    row = next(mine)
                    assert (row["frame"], row["face"], row["pts_s"]) == (seen.index, rank, seen.pts_s)
                    assert (row["track"], row["after_gap"]) == (sighting.track_id, sighting.after_gap)
                    np.testing.assert_allclose(row["box"], seen.faces.boxes_N4[rank], atol=1e-3)
                    landmarks = np.reshape(row["landmarks"], (5, 2))
                    np.testing.assert_allclose(landmarks, seen.faces.landmarks_NK2[rank], atol=1e-3)
        assert next(mine, None) is None


def test_crops_are_the_pixels_and_their_transforms_tell_where_from(whole: Path, mixed: Path) -> None:
    products = Products(Store(whole))
    for shard in products.shards():
        faces = products.faces(shard)
        assert faces.schema.equals(FACES)
        for row, crop in products.crops(faces):
            assert crop.shape == (row["crop_height"], row["crop_width"], 3)
            if row["video"] not in GOOD:
                continue
            with VideoReader(mixed / f"{row['video']}.mp4") as reader:
                (frame,) = reader.frames(Sampling(times_s=(row["pts_s"],)))
            assert isinstance(frame, Frame)
            expected = cut(frame.image_HWC, enlarge(np.array(row["box"], np.float32), 1.3, square=True))
            np.testing.assert_array_equal(crop, expected)
            transform = np.reshape(row["crop_transform"], (2, 3))
            middle = row["crop_width"] // 2
            x, y = transform @ (middle, middle, 1)
            np.testing.assert_array_equal(crop[middle, middle], frame.image_HWC[round(y), round(x)])
            places = np.reshape(row["crop_landmarks"], (5, 2)) @ transform[:, :2].T + transform[:, 2]
            np.testing.assert_allclose(places.ravel(), row["landmarks"], atol=1e-2)


def test_features_have_the_rows_of_the_faces(whole: Path) -> None:
    products = Products(Store(whole))
    (key,) = {path.parent.name for path in whole.glob("features/*/*.parquet")}
    about = json.loads((whole / "features" / key / "key.json").read_text())
    for shard in products.shards():
        features = products.features(key, shard)
        assert features.dtype == np.float16
        assert features.shape == (len(products.faces(shard)), about["dim"])
        assert np.isfinite(features).all()
        assert not len(features) or features.std() > 0


def test_tracks_are_joined(whole: Path) -> None:
    wide = [row for row in rows(whole, "faces") if row["video"] == "fake/wide"]
    left = {row["track"] for row in wide if row["box"][0] < 320}
    right = {row["track"] for row in wide if row["box"][0] >= 320}
    assert left
    assert right
    assert not left & right


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(shard_videos=5, pools=Pools(fused=True)),
        RunOptions(shard_videos=4, pools=Pools(max_batch_mb=1, detect_actors=1)),
    ],
    ids=["fused", "small-batches"],
)
def test_how_it_is_done_makes_no_difference(whole: Path, mixed: Path, tmp_path: Path, options: RunOptions) -> None:
    run(str(mixed), str(tmp_path), JOB, options, say=silent)
    for table in ("videos", "faces"):
        for mine, theirs in zip(rows(tmp_path, table), rows(whole, table), strict=True):
            for changing in ("crop_file", "crop_offset", "config"):
                mine.pop(changing, None)
                theirs.pop(changing, None)
            assert mine == theirs


def test_a_second_run_does_nothing_again(whole: Path, mixed: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.parquet")}
    said = run(str(mixed), str(whole), JOB, OPTIONS, say=silent)
    assert said["videos"]["finished"] == 0
    assert said["failed"] == 4
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*.parquet")} == before


def test_another_configuration_is_refused_by_name(whole: Path, mixed: Path) -> None:
    other = Job(sampling=Sampling(frames=7), crops=CropOptions(margin=1.5), embed=JOB.embed)
    with pytest.raises(UsageError, match=r"crops.margin was 1.3, now 1.5; sampling.frames was 6, now 7"):
        run(str(mixed), str(whole), other, OPTIONS, say=silent)


def test_a_decoder_that_dies_and_one_that_hangs_are_quarantined(mixed: Path, tmp_path: Path) -> None:
    options = RunOptions(
        shard_videos=4,
        fault={"hevc": "abort", "vp9": "hang"},
        pools=Pools(decode_timeout_s=2.0),
    )
    said = run(str(mixed), str(tmp_path), Job(sampling=Sampling(frames=4)), options, say=silent)
    videos = {row["video"]: row for row in rows(tmp_path, "videos")}
    assert [videos["real/hevc"][k] for k in ("status", "reason", "attempts")] == ["quarantined", "decoder_crashed", 2]
    assert "SIGABRT" in videos["real/hevc"]["message"]
    assert [videos["fake/vp9"][k] for k in ("status", "reason", "attempts")] == ["quarantined", "decoder_hung", 2]
    assert said["failed"] == 6
    assert all(videos[name]["status"] == "done" for name in GOOD if name not in {"real/hevc", "fake/vp9"})


def test_an_output_that_cannot_be_written_is_told_at_once(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        run(str(mixed), str(tmp_path / "file" / "out"), JOB, OPTIONS, say=silent)
