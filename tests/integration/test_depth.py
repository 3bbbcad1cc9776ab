"""Depth maps, and only their features, of a run's crops on real Ray processes: each once, whoever is killed."""

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import depth
from pipelines.config import EmbedOptions, Job
from pipelines.depth import DepthMaker, DepthOptions, unmade
from pipelines.extras import Extras
from pipelines.run import RunOptions, run
from tests.depths import tiny_depth
from tests.mixed import paired_dataset
from tests.processes import children
from unmask.depth import DepthEstimator, as_rgb
from unmask.errors import ModelError, StorageError
from unmask.plan import Sampling
from unmask.presets import resolve
from unmask.products import Products
from unmask.storage import Store
from unmask.transforms import to_tensor

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow, pytest.mark.timeout(600)]

ACTOR = re.compile(r"^ray::DepthStage")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paired_dataset(tmp_path_factory.mktemp("pairs") / "ffpp")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "out"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


def make(pairs: Path, out: Path, options: DepthOptions) -> tuple[Path, list[str]]:
    """Run it; the folder of its depth tables, and what was said."""
    before = {path: _times(path) for path in out.glob("depth/*")}
    said: list[str] = []
    job = Job(sampling=Sampling(frames=4))
    result = run(str(pairs), str(out), job, RunOptions(shard_videos=1), say=said.append, extras=Extras(depth=options))
    assert result["failed"] == 0, said
    (folder,) = (path for path in out.glob("depth/*") if before.get(path) != _times(path))
    return folder, said


def _times(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in sorted(folder.iterdir())]


def rows(folder: Path) -> list[dict[str, Any]]:
    store = Store(folder)
    return [row for p in sorted(folder.glob("*.parquet")) for row in store.read_table(p.name).to_pylist()]


def crops(out: Path) -> list[tuple[tuple[str, int, int], np.ndarray[Any, np.dtype[np.uint8]]]]:
    products = Products(Store(out))
    found = []
    for shard in products.shards():
        faces = products.faces(shard)
        names = zip(*(faces[name].to_pylist() for name in ("video", "frame", "face")), strict=True)
        found += [(name, crop_HWC) for name, (_, crop_HWC) in zip(names, products.crops(faces), strict=True)]
    return found


def test_every_crop_has_its_map_once_whoever_is_killed(pairs: Path, out: Path, weights: Path) -> None:
    options = DepthOptions(weights=str(weights), size_px=56, device="cpu")
    folder, said = make(pairs, out, options)
    every, found = crops(out), rows(folder)
    assert len(every) >= 16
    assert any(f"{len(every)} maps" in line for line in said)
    estimator = DepthEstimator.load(str(weights), size_px=56)
    for (name, crop_HWC), row in zip(every, found, strict=True):
        assert (row["video"], row["frame"], row["face"]) == name
        (expected_HW,) = estimator.maps([crop_HWC])
        map_HW = cv2.imdecode(np.frombuffer(row["depth"], np.uint8), cv2.IMREAD_GRAYSCALE)
        assert expected_HW is not None
        assert map_HW is not None
        assert np.abs(map_HW.astype(int) - expected_HW).max() <= 1
    tables = sorted(folder.glob("*.parquet"))
    assert len(tables) == 4
    # As if it had been killed after two of four shards; and now an actor is.
    for path in tables[2:]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in tables[:2]}
    killed, over = [], threading.Event()
    killer = threading.Thread(target=lambda: killed.extend(kill_one(over)))
    killer.start()
    try:
        assert make(pairs, out, options)[0] == folder
    finally:
        over.set()
        killer.join()
    assert killed
    assert rows(folder) == found
    assert {path: path.stat().st_mtime_ns for path in tables[:2]} == kept
    assert not list(folder.glob("*.part"))


def kill_one(over: threading.Event) -> list[int]:
    """Kill the first actor that is there; nobody if none comes."""
    while not over.wait(0.02):
        for pid, title in children(os.getpid()):
            if ACTOR.search(title):
                os.kill(pid, signal.SIGKILL)
                return [pid]
    return []


def test_only_features_are_kept_beside_the_maps(pairs: Path, out: Path, weights: Path) -> None:
    with_maps = DepthOptions(weights=str(weights), size_px=56, device="cpu")
    maps, _ = make(pairs, out, with_maps)
    backbone = EmbedOptions(model="test_resnet", pretrained=False)
    options = DepthOptions(weights=str(weights), size_px=56, features=backbone, device="cpu")
    features, _ = make(pairs, out, options)
    assert features != maps
    model, description = resolve("test_resnet", pretrained=False)
    for with_map, row in zip(rows(maps), rows(features), strict=True):
        map_HW = cv2.imdecode(np.frombuffer(with_map["depth"], np.uint8), cv2.IMREAD_GRAYSCALE)
        assert map_HW is not None
        with torch.inference_mode():
            (expected_D,) = model.features(to_tensor([as_rgb(np.asarray(map_HW, np.uint8))], description.preprocessing))
        assert (row["video"], row["frame"]) == (with_map["video"], with_map["frame"])
        np.testing.assert_allclose(row["features"], expected_D.numpy(), atol=0.02, rtol=0.02)
    sizes = [sum(p.stat().st_size for p in folder.glob("*.parquet")) for folder in (maps, features)]
    assert sizes[1] < sizes[0]


def test_what_keeps_an_actor_from_its_work_is_said_as_it_is(
    pairs: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that only the driver has; and others than it has."""
    folder = tiny_depth(tmp_path / "gone", seed=5)  # others than those of which maps are there
    options = DepthOptions(weights=str(folder), size_px=56, device="cpu")

    def lost(store: Store, key: str, shards: int) -> list[int]:
        folder.rename(tmp_path / "elsewhere")
        return unmade(store, key, shards)

    with monkeypatch.context() as patch:
        patch.setattr(depth, "unmade", lost)
        with pytest.raises(ModelError, match=r"^there is no folder .*gone with depth weights"):
            make(pairs, out, options)
    (tmp_path / "elsewhere").rename(folder)
    with monkeypatch.context() as patch:
        patch.setattr(DepthMaker, "to_json", lambda _: {"sha256": "another"})
        with pytest.raises(StorageError, match=r"^\S+gone has other depth weights here than where the run began\.$"):
            make(pairs, out, options)


def test_a_network_that_says_nothing_gives_reasons_and_crops_that_are_gone_are_said(
    pairs: Path, out: Path, weights: Path, tmp_path: Path
) -> None:
    flat = tiny_depth(tmp_path / "flat")
    tensors = load_file(flat / "model.safetensors")
    tensors["head.conv3.weight"].zero_()
    save_file(tensors, flat / "model.safetensors", {"format": "pt"})
    folder, said = make(pairs, out, DepthOptions(weights=str(flat), size_px=56, device="cpu"))
    assert any(f"0 maps, {len(crops(out))} depth_failed" in line for line in said)
    assert {(row["depth"], row["reason"]) for row in rows(folder)} == {(None, "depth_failed")}
    (out / "crops").rename(out / "lost")
    with pytest.raises(StorageError, match="crops"):
        make(pairs, out, DepthOptions(weights=str(weights), size_px=70, device="cpu"))
