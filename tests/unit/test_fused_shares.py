"""Features of clips that workers share, and of long tracks, which are made part by part."""

import gc
import json
import time
import weakref
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.depths import tiny_depth
from tests.products import BOX, Clip, faked, finished_run
from tests.workers import in_two_processes
from train import extractor as extracting
from train import keeper as keeping
from train import worker as working
from train.augment import Picture
from train.catalogue import Catalogue
from train.config import TrainConfig, overridden
from train.context import Context
from train.crops import CropReader
from train.extractor import DAMAGED, GOOD
from train.fused_samples import FusedMaterial, FusedSamples
from train.keeper import Keeper, Unit, shares
from train.material import Material
from train.recipes import recipe
from train.splits import splits_of
from unmask.storage import Store

ALONE = Context(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight people, each real and fake, with one to eight faces."""
    clips = []
    for n in range(8):
        about, faces = {"identity": [f"p{n}"]}, {frame: [BOX] for frame in range(n + 1)}
        clips.append(Clip(video=f"real/{n}", faces=faces, columns={"label": 0, **about}))
        clips.append(Clip(video=f"fake/{n}", picture=faked, faces=faces, columns={"label": 1, **about}))
    finished_run(Store(tmp_path / "faces"), clips, per_shard=20)
    return tmp_path / "faces"


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """One track of 40 faces: the last is the largest, and the thirtieth, larger still, is damaged."""
    faces = {frame: [(*BOX[:2], BOX[2] + frame % 3, BOX[3] + frame % 5)] for frame in range(40)}
    faces[29], faces[39] = [(80.0, 30.0, 240.0, 220.0)], [(90.0, 40.0, 230.0, 210.0)]
    finished_run(Store(tmp_path / "long"), [Clip(video="v", faces=faces, columns={"label": 0})])
    catalogue = Catalogue.read([str(tmp_path / "long")])
    damage(catalogue, 29)
    return tmp_path / "long"


def damage(catalogue: Catalogue, face: int) -> None:
    place = catalogue.place_of(face)
    store, name = catalogue.files[place.file]
    with store.local_path(name).open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(place.size))


def configured(depth: Path, *more: str) -> TrainConfig:
    settings = [
        "model.backbone=test_efficientnet", "heads=4", "layers=1", "hidden=16", "window=4", "pretrained=false",
        "size_px=32", "depth_px=56", "copies=1", "batch=4", "fractions=[0.5,0.25,0.25]", f"input.depth={depth}",
    ]  # fmt: skip
    return overridden(recipe("ffpp-fusion"), [*settings, *more])


def test_shares_are_balanced_by_faces_and_always_the_same() -> None:
    faces_U = np.random.default_rng(0).integers(1, 200, 50).tolist()
    rank_U = shares(faces_U, 3)
    loads = [sum(f for f, r in zip(faces_U, rank_U, strict=True) if r == rank) for rank in range(3)]
    assert max(loads) - min(loads) <= min(faces_U) + 2
    assert rank_U.tolist() == shares(faces_U, 3).tolist()
    assert shares([9, 1, 1, 1, 6], 2).tolist() == [0, 1, 1, 1, 1]
    assert shares([5, 5], 4).tolist() == [0, 1]
    assert shares([], 2).tolist() == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_share_what_is_missing_and_count_it_once(
    data: Path, depth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, catalogue = configured(depth, "copies=2"), Catalogue.read([str(data)])
    damaged = splits_of(catalogue, config, 0).train[0]
    left, made = tmp_path / "left", list[Unit]()
    inner, looked, is_late = Keeper._made, Keeper._kept, False

    def noted(self: Keeper, unit: Unit, account: Any) -> Any:
        made.append(unit)
        return inner(self, unit, account)

    monkeypatch.setattr(Keeper, "_made", noted)

    def looked_late(self: Keeper, unit: Unit, account: Any) -> Any:
        """The second worker begins to look when the first could have made something."""
        nonlocal is_late
        deadline = time.monotonic() + 1.0
        while is_late and time.monotonic() < deadline and not list((data / "clips").rglob("*.safetensors")):
            time.sleep(0.01)
        is_late = False
        return looked(self, unit, account)

    monkeypatch.setattr(Keeper, "_kept", looked_late)

    def gathered(context: Context, told: Path) -> None:
        made.clear()
        material = Material.of(catalogue, config, seed=0, context=context)
        assert isinstance(material.kept, FusedMaterial)
        assert isinstance(material.train, FusedSamples)
        sums = [float(np.abs(track.features_PE).sum()) for track in material.train.tracks]
        account = material.kept.told()["kept_features"]
        told.write_text(json.dumps({"made": made, "account": account, "sums": sums}))

    def work(context: Context) -> None:
        nonlocal is_late
        is_late = not context.leads
        cv2.setNumThreads(0)
        gathered(context, tmp_path / f"first-{context.rank}")
        context.barrier()
        if context.leads:
            video = catalogue.videos[damaged].about.video.removeprefix("faces/")
            for n, path in enumerate(sorted((data / "clips").rglob("*.safetensors"))):
                if n % 3 == 0 or path.as_posix().endswith(tuple(f"/{video}-0-{k}.safetensors" for k in range(3))):
                    path.unlink()
            damage(catalogue, catalogue.videos[damaged].rows.start)
            left.write_text(str(len(list((data / "clips").rglob("*.safetensors")))))
        context.barrier()
        gathered(context, tmp_path / f"second-{context.rank}")

    in_two_processes(tmp_path, work)
    one, other = (json.loads((tmp_path / f"first-{rank}").read_text()) for rank in range(2))
    every = sorted(one["made"] + other["made"])
    assert len({tuple(unit) for unit in every}) == len(every) == one["account"]["made"] == one["account"]["clips"]
    assert one["account"] == other["account"]
    assert one["account"]["from_cache"] == 0
    assert one["sums"] == other["sums"]
    loads = [sum(_faces(catalogue, unit) for unit in worker["made"]) for worker in (one, other)]
    assert abs(loads[0] - loads[1]) <= 1

    again = [json.loads((tmp_path / f"second-{rank}").read_text()) for rank in range(2)]
    found = int(left.read_text())
    missing = len(every) - found
    assert 4 < missing < len(every)
    for worker in again:
        assert (worker["account"]["made"], worker["account"]["from_cache"]) == (missing, found)
        assert worker["account"]["hit_rate"] == pytest.approx(found / len(every))
        assert worker["account"] == again[0]["account"]
        assert worker["account"]["faces_masked"] == {"crop_damaged": 3}
    # Nothing is kept of a clip with a damaged crop, here one and its copies: each makes it, and it counts once.
    remade = [tuple(unit) for worker in again for unit in worker["made"]]
    assert {unit for unit in remade if remade.count(unit) == 2} == {(damaged, 0, copy) for copy in range(3)}
    assert len(set(remade)) == missing

    monkeypatch.undo()
    for path in (data / "clips").rglob("*.safetensors"):
        path.unlink()
    alone = Material.of(catalogue, config, seed=0, context=ALONE)
    assert isinstance(alone.train, FusedSamples)
    sums = [float(np.abs(track.features_PE).sum()) for track in alone.train.tracks]
    np.testing.assert_allclose(sums, again[1]["sums"], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_workers_of_a_training_share_and_the_first_tells(
    data: Path, depth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through what each process of a training runs, up to where it trains."""
    made, inner = list[Unit](), Keeper._made

    def noted(self: Keeper, unit: Unit, account: Any) -> Any:
        made.append(unit)
        return inner(self, unit, account)

    class Trained:
        def __init__(self, run: Any, material: Material, *_: Any, **__: Any) -> None:
            assert isinstance(material.kept, FusedMaterial)
            self.told = material.kept.told()

        def fit(self) -> None:
            pass

    monkeypatch.setattr(Keeper, "_made", noted)
    monkeypatch.setattr(working, "Training", Trained)
    task = working.Task(config=configured(depth), data=(str(data),), out=str(tmp_path / "out"))

    def work(context: Context) -> None:
        cv2.setNumThreads(0)
        said: list[str] = []
        working.train_all(task, context, said.append)
        (tmp_path / f"told-{context.rank}").write_text(json.dumps({"made": made, "said": said}))

    in_two_processes(tmp_path, work)
    one, other = (json.loads((tmp_path / f"told-{rank}").read_text()) for rank in range(2))
    assert len(one["made"]) > 2
    assert len(other["made"]) > 2
    every = {tuple(unit) for unit in one["made"] + other["made"]}
    assert len(every) == len(one["made"]) + len(other["made"])
    assert any(f"features of {len(every)} clips: 0 kept, {len(every)} made" in line for line in one["said"])
    assert other["said"] == []


def _faces(catalogue: Catalogue, unit: list[int]) -> int:
    return len(catalogue.faces_of(unit[0]))


def keeper_of(config: TrainConfig, data: Path) -> Keeper:
    catalogue = Catalogue.read([str(data)])
    preprocessing = config.input.preprocessing(config.model.backbone)
    return FusedMaterial(catalogue, CropReader(catalogue), config, preprocessing, ALONE).keeper


@pytest.mark.parametrize("strategy", ["fusion", "dfdc", "video"])
def test_a_long_track_made_part_by_part_is_what_it_is_made_at_once(
    long: Path, depth: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops damaged, pictures whose size a draw changes, draws that encode a whole clip: the square is the same."""
    keeper = keeper_of(configured(depth, f"augment.strategy={strategy}"), long)
    found: dict[int, list[NDArray[np.float16]]] = {}
    for part in (16, 1000):
        monkeypatch.setattr(keeping, "_PART", part)
        clips = [keeper.track(0, 0, copy)[1] for copy in range(4)]
        assert all(clip.state_L.tolist() == [GOOD] * 29 + [DAMAGED] + [GOOD] * 10 for clip in clips)
        found[part] = [clip.features_LE for clip in clips]
    for parts, whole in zip(found[16], found[1000], strict=True):
        # Where a face drops out, batches of the backbone are others.
        np.testing.assert_allclose(parts, whole, atol=2e-5, rtol=2e-3)
    assert any(not np.allclose(found[16][0], copy, atol=1e-3) for copy in found[16][1:])


def test_no_more_pictures_are_held_than_a_part_has(long: Path, depth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeping._PART <= 64
    assert keeping._PART % extracting._BATCH == 0
    held: list[weakref.ref[NDArray[np.uint8]]] = []
    most = reads = 0
    inner = CropReader.picture

    def counted(self: CropReader, face: int, preprocessing: Any) -> Picture:
        nonlocal most, reads
        picture = inner(self, face, preprocessing)
        held.append(weakref.ref(picture.image_HWC))
        most, reads = max(most, sum(ref() is not None for ref in held)), reads + 1
        return picture

    monkeypatch.setattr(CropReader, "picture", counted)
    keeper = keeper_of(configured(depth), long)
    for part, times in ((16, 2), (64, 1)):
        monkeypatch.setattr(keeping, "_PART", part)
        gc.collect()
        held, most, reads = [], 0, 0
        keeper.track(0, 0)
        assert most == min(part, 39)
        assert reads == 39 * times  # and one is damaged
