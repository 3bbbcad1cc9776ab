"""Depth maps of a run's crops: one row a face, whole shards, a reason for each map that is not there."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.depth import DEPTH_WEIGHTS, DepthOptions, DepthStage, write_depth
from pipelines.extras import Extras, check_extras
from tests.depths import tiny_depth
from tests.products import BOX, Clip, finished_run
from unmask.depth import DEPTH_MODEL, DepthEstimator
from unmask.errors import ModelError, StorageError, UsageError
from unmask.products import Products
from unmask.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "faces")
    clips = [Clip(video=f"v{n}", faces={0: [BOX], 10: [BOX]}, columns={"label": 0}) for n in range(3)]
    finished_run(store, clips, per_shard=10, margin=1.3)
    return store


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


def test_every_face_has_its_map_in_its_row(store: Store, weights: Path) -> None:
    estimator = DepthEstimator.load(str(weights), size_px=56)
    assert write_depth(store, 0, "k", estimator) == {"done": 6}
    table, faces = store.read_table("depth/k/00000.parquet"), Products(store).faces(0)
    for name in ("video", "frame", "face"):
        assert table[name].to_pylist() == faces[name].to_pylist()
    for (_, crop_HWC), data in zip(Products(store).crops(faces), table["depth"].to_pylist(), strict=True):
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        (expected,) = estimator.maps([crop_HWC])
        assert expected is not None
        assert found is not None
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_damaged_crop_is_a_reason_and_takes_no_other_with_it(store: Store, weights: Path) -> None:
    faces = Products(store).faces(0)
    name, offset = faces["crop_file"][1].as_py(), faces["crop_offset"][1].as_py()
    path = store.local_path(name)
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = bytes(64)
    path.write_bytes(bytes(data))
    assert write_depth(store, 0, "k", DepthEstimator.load(str(weights), size_px=56)) == {"done": 5, "crop_damaged": 1}
    assert store.read_table("depth/k/00000.parquet")["reason"].to_pylist() == [None, "crop_damaged", *[None] * 4]


def test_other_weights_than_the_runs_are_refused(store: Store, weights: Path) -> None:
    with pytest.raises(StorageError, match="has other depth weights here than where the run began"):
        DepthStage(store, DepthOptions(weights=str(weights), size_px=56, device="cpu"), "another")


def test_what_cannot_be_made_is_said_before_the_run(weights: Path, tmp_path: Path) -> None:
    assert DEPTH_WEIGHTS == DEPTH_MODEL
    options = DepthOptions(weights=str(weights), size_px=56)
    assert Extras(depth=options).needs_cluster
    check_extras(Extras(depth=options), has_crops=True)
    with pytest.raises(UsageError, match="depth maps and exports are made of crops"):
        check_extras(Extras(depth=options), has_crops=False)
    with pytest.raises(ModelError, match=r"there is no folder .* with depth weights"):
        check_extras(Extras(depth=DepthOptions(weights=str(tmp_path / "no"))), has_crops=True)
