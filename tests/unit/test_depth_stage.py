"""Depth maps of a run's crops: one row a face, whole shards, a reason for each map that is not there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.config import EmbedOptions
from pipelines.depth import DEPTH_WEIGHTS, DepthMaker, DepthOptions, DepthStage, shares, unmade
from pipelines.extras import Extras, check_extras
from pipelines.run import _reopen
from tests.depths import tiny_depth
from tests.products import BOX, Clip, faked, finished_run
from unmask.depth import DEPTH_MODEL, DepthEstimator, as_rgb
from unmask.errors import ModelError, StorageError, UsageError
from unmask.presets import resolve
from unmask.products import Products
from unmask.storage import Store
from unmask.transforms import to_tensor


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "faces")
    clips = [Clip(video=f"v{n}", faces={0: [BOX], 10: [BOX]}, columns={"label": 0}) for n in range(3)]
    finished_run(store, clips, per_shard=10, margin=1.3)
    return store


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


def damage(store: Store, faces: pa.Table, n: int) -> None:
    """Make one crop unreadable where it lies."""
    path, offset = store.local_path(faces["crop_file"][n].as_py()), faces["crop_offset"][n].as_py()
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = bytes(64)
    path.write_bytes(bytes(data))


def test_every_face_has_its_map_in_its_row(store: Store, weights: Path) -> None:
    estimator = DepthEstimator.load(str(weights), size_px=56)
    assert DepthMaker(estimator).write(store, 0, "k") == {"done": 6}
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
    damage(store, Products(store).faces(0), 1)
    maker = DepthMaker(DepthEstimator.load(str(weights), size_px=56))
    assert maker.write(store, 0, "k") == {"done": 5, "crop_damaged": 1}
    assert store.read_table("depth/k/00000.parquet")["reason"].to_pylist() == [None, "crop_damaged", *[None] * 4]


def test_a_place_that_cannot_be_read_is_no_damaged_crop(
    store: Store, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there and a bucket does not answer: nothing is written of it, and it is made later."""

    def silent(self: Store, name: str) -> Any:
        if not name.startswith("crops/"):
            return opened(self, name)
        with self.telling("read", name):
            raise TimeoutError(110, "no answer")

    opened = Store.open
    maker = DepthMaker(DepthEstimator.load(str(weights), size_px=56))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", silent)
        with pytest.raises(StorageError, match=r"crops/.* cannot be read \(no answer\)"):
            maker.write(store, 0, "k")
    assert unmade(store, "k", 1) == [0]
    assert maker.write(store, 0, "k") == {"done": 6}


def test_what_was_made_of_other_faces_is_made_again(store: Store, weights: Path) -> None:
    """Preprocessed again with a video more, or with other pictures at the same frames; or a crop that was damaged."""
    maker = DepthMaker(DepthEstimator.load(str(weights), size_px=56))
    assert unmade(store, "k", 2) == [0, 1]
    maker.write(store, 0, "k")
    assert unmade(store, "k", 2) == [1]
    clips = [Clip(video=f"v{n}", picture=faked, faces={0: [BOX], 10: [BOX]}, columns={"label": 0}) for n in range(3)]
    products = finished_run(store, clips, per_shard=10, margin=1.3)
    assert unmade(store, "k", 1) == [0]
    maker.write(store, 0, "k")
    damage(store, products.faces(0), 1)
    assert unmade(store, "k", 1) == []
    maker.write(store, 0, "k")
    assert unmade(store, "k", 1) == [0]


def test_failed_videos_that_are_tried_again_get_their_maps(tmp_path: Path, weights: Path) -> None:
    store, (first, second) = Store(tmp_path / "faces"), (Clip(video=f"v{n}", columns={"label": 0}) for n in range(2))
    lost = replace(second, faces={}, status="failed")
    products = finished_run(store, [first, lost, first, second], per_shard=2)
    maker = DepthMaker(DepthEstimator.load(str(weights), size_px=56))
    for shard in range(2):
        maker.write(store, shard, "k")
    _reopen(products)
    assert (products.shards(), store.names("depth/k")) == ([1], ["depth/k/00001.parquet"])
    finished_run(store, [first, second, first, second], per_shard=2)
    assert unmade(store, "k", 2) == [0]
    assert maker.write(store, 0, "k") == {"done": len(products.faces(0))} == {"done": 4}


@pytest.mark.parametrize(
    ("device", "cpus", "gpus", "actors", "shards", "expected"),
    [
        ("auto", 64, 0, None, 100, (64, 0.0)),
        ("auto", 64, 8, None, 100, (8, 1.0)),
        ("cpu", 64, 8, None, 100, (64, 0.0)),
        ("cuda", 64, 8, 24, 100, (24, 0.3333)),
        ("auto", 64, 2, 3, 100, (3, 0.5)),
        ("auto", 64, 2, 3, 1, (1, 1.0)),
        ("auto", 2, 8, None, 100, (2, 1.0)),
    ],
)
def test_actors_share_the_gpus_that_are_there(
    device: str, cpus: float, gpus: float, actors: int | None, shards: int, expected: tuple[int, float]
) -> None:
    count, share = shares(device, cpus, gpus, actors, shards)
    assert (count, share) == expected
    if share:
        assert int(1 / share) * gpus >= count


def test_only_features_are_what_the_backbone_says_of_each_map(store: Store, weights: Path) -> None:
    """By hand: crop, map, three channels, the backbone's size, the backbone; and a reason where there is no map."""
    backbone = EmbedOptions(model="test_resnet", pretrained=False)
    options = DepthOptions(weights=str(weights), size_px=56, features=backbone).check()
    assert options.features is not None
    assert options.features.sha256
    maker = DepthMaker.load(options, torch.device("cpu"))
    faces = Products(store).faces(0)
    damage(store, faces, 2)
    assert maker.write(store, 0, "k") == {"done": 5, "crop_damaged": 1}
    table = store.read_table("depth/k/00000.parquet")
    assert table.column_names == ["video", "frame", "face", "features", "reason"]
    model, description = resolve("test_resnet", pretrained=False)
    estimator = DepthEstimator.load(str(weights), size_px=56)
    for n, row in enumerate(table.to_pylist()):
        if n == 2:
            assert (row["features"], row["reason"]) == (None, "crop_damaged")
            continue
        ((_, crop_HWC),) = Products(store).crops(faces.slice(n, 1))
        (map_HW,) = estimator.maps([crop_HWC])
        assert map_HW is not None
        with torch.inference_mode():
            (expected_D,) = model.features(to_tensor([as_rgb(map_HW)], description.preprocessing)).numpy()
        np.testing.assert_allclose(row["features"], expected_D, atol=2e-3, rtol=2e-3)


def test_maps_and_features_of_all_kinds_have_keys_of_their_own(weights: Path) -> None:
    backbones = (None, *(EmbedOptions(model=m, pretrained=False) for m in ("test_resnet", "test_vit")))
    every = [DepthOptions(weights=str(weights), size_px=56, features=features) for features in backbones]
    seen = [DepthMaker.load(options, torch.device("cpu")).to_json() for options in every]
    assert all(a != b for n, a in enumerate(seen) for b in seen[:n])


def test_other_weights_than_the_runs_are_refused(store: Store, weights: Path) -> None:
    with pytest.raises(StorageError, match="has other depth weights here than where the run began"):
        DepthStage(store, DepthOptions(weights=str(weights), size_px=56, device="cpu"), {"sha256": "another"})


def test_what_cannot_be_made_is_said_before_the_run(weights: Path, tmp_path: Path) -> None:
    assert DEPTH_WEIGHTS == DEPTH_MODEL
    options = DepthOptions(weights=str(weights), size_px=56)
    assert Extras(depth=options).needs_cluster
    check_extras(Extras(depth=options), has_crops=True)
    with pytest.raises(UsageError, match="depth maps and exports are made of crops"):
        check_extras(Extras(depth=options), has_crops=False)
    with pytest.raises(ModelError, match=r"there is no folder .* with depth weights"):
        check_extras(Extras(depth=DepthOptions(weights=str(tmp_path / "no"))), has_crops=True)
