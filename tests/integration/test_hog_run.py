"""dlib's HOG detector over a dataset, on real Ray processes: it finds the faces that MTCNN finds there."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.config import DetectorOptions, Job
from pipelines.run import RunOptions, run
from unmask.plan import Sampling
from unmask.products import Products
from unmask.storage import Store

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow, pytest.mark.timeout(600)]

VIDEOS = ("original_sequences/youtube/c23/videos/519.mp4", "manipulated_sequences/Deepfakes/c23/videos/519_515.mp4")


def iou(a: Any, b: Any) -> float:
    """Of two boxes, x1, y1, x2, y2."""
    width, height = (max(min(a[n + 2], b[n + 2]) - max(a[n], b[n]), 0.0) for n in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(width * height / (sum(areas) - width * height))


def boxes(clips: Path, out: Path, detector: str) -> dict[tuple[str, int], Any]:
    """The box of the most probable face, by video and frame."""
    job = Job(sampling=Sampling(frames=4), detector=DetectorOptions(name=detector))
    result = run(str(clips), str(out), job, RunOptions(), say=lambda line: None)
    assert (result["videos"]["total"], result["failed"]) == (2, 0)
    products = Products(Store(out))
    rows = [row for shard in products.shards() for row in products.faces(shard).to_pylist()]
    assert len(list(products.crops(products.faces(products.shards()[0])))) > 0
    return {(row["video"], row["frame"]): row["box"] for row in rows if row["face"] == 0}


def test_two_clips(shared_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    for name in VIDEOS:
        link = tmp_path / "ffpp" / name
        link.parent.mkdir(parents=True)
        link.symlink_to(shared_dir / "videos" / "ffpp" / name)
    hog, mtcnn = (boxes(tmp_path / "ffpp", tmp_path / name, name) for name in ("hog", "mtcnn"))
    assert {video for video, _ in hog} == {video for video, _ in mtcnn}
    assert len({video for video, _ in hog}) == 2
    common = hog.keys() & mtcnn.keys()
    assert len(common) >= 6
    assert min(iou(hog[key], mtcnn[key]) for key in common) > 0.4
