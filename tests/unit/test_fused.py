"""Features of RGB and depth: how they are padded, made, kept and shared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.depths import tiny_depth
from tests.fusion import configured, eight_people, made
from tests.heads import head
from tests.products import BOX, Clip, faked, finished_run, portrait
from train.catalogue import Catalogue
from train.config import overridden
from train.crops import CropReader
from train.extractor import DAMAGED, GOOD, padded
from train.fused_samples import FusedMaterial, FusedSamples
from train.material import Material
from unmask.checkpoints import Description, save
from unmask.depth import DepthEstimator, as_rgb
from unmask.errors import ModelError, StorageError
from unmask.models import build
from unmask.products import Products
from unmask.storage import Store
from unmask.transforms import to_tensor


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return eight_people(tmp_path / "faces")


def test_faces_are_padded_and_not_resized() -> None:
    small, wide = head(20, 30).image_HWC, head(40, 50).image_HWC
    first, second = padded([small, wide], 50)
    assert first.shape == second.shape == (50, 50, 3)
    assert np.array_equal(first[15:35, 10:40], small)
    assert np.array_equal(second[5:45], wide)
    assert first.sum() == small.sum()
    assert second.sum() == wide.sum()


def test_features_are_those_of_the_padded_faces_and_their_maps(data: Path, depth: Path) -> None:
    """By hand: crops, maps of each, black squares as large as the largest, resized, through the backbone."""
    material, catalogue = made(configured(depth), data)
    rows_L, clip = material.keeper.track(0, int(catalogue.track_N[0]))
    reader, preprocessing = CropReader(catalogue), material.keeper.extractor.preprocessing
    crops = [reader.picture(int(row), preprocessing).image_HWC for row in rows_L]
    assert len({crop.shape for crop in crops}) == 2
    maps = DepthEstimator.load(str(depth), size_px=56).maps(crops)
    side = max(max(crop.shape) for crop in crops)
    rgb = to_tensor(padded(crops, side), preprocessing)
    grey = to_tensor(padded([as_rgb(m) for m in maps if m is not None], side), preprocessing)
    with torch.inference_mode():
        expected = torch.cat([material.model.backbone(rgb), material.model.backbone(grey)], 1)
    assert expected.abs().mean() > 1e-3
    np.testing.assert_allclose(clip.features_LE, expected.numpy(), atol=2e-5, rtol=2e-3)
    assert (clip.state_L == GOOD).all()


def test_what_was_made_once_is_kept_and_shared(data: Path, depth: Path) -> None:
    config = configured(depth)
    first = Material.of(Catalogue.read([str(data)]), config, seed=0)
    assert isinstance(first.kept, FusedMaterial)
    account = first.kept.keeper.account
    clips = len(first.splits.train) * 2 + len(first.splits.val)
    assert (account.made, account.found) == (clips, 0)
    files = sorted((data / "clips").rglob("*.safetensors"))
    assert len(files) == clips
    assert account.bytes == sum(f.stat().st_size for f in files)
    # Another head, seed and number of copies share what they have in common.
    other = Material.of(
        Catalogue.read([str(data)]), overridden(config, ["copies=2", "model.fusion.cross=none"]), seed=3
    )
    assert isinstance(other.kept, FusedMaterial)
    shared = other.kept.keeper.account
    assert (shared.made, shared.found) == (len(first.splits.train), clips)
    assert shared.to_json()["hit_rate"] == pytest.approx(clips / (clips + len(first.splits.train)))


def test_whatever_shapes_features_gives_them_a_key_of_their_own(data: Path, depth: Path, tmp_path: Path) -> None:
    config = configured(depth)
    about = Description(
        name="m", version="1", config=config.model, preprocessing=config.input.preprocessing(config.model.backbone)
    )
    save(tmp_path / "other.safetensors", build(config.model, seed=7), about)
    settings = [
        "depth_px=70", "size_px=40", "strategy=dfgc", "model.backbone=test_resnet", "margin=1.2", "fit=pad",
        f"weights={tmp_path / 'other.safetensors'}", f"input.depth={tiny_depth(tmp_path / 'other', seed=1)}",
    ]  # fmt: skip
    for setting in ("copies=2", *settings):
        material, catalogue = made(overridden(config, [setting]), data)
        track = int(catalogue.track_N[0])
        material.keeper.track(0, track, 1)
        material.keeper.track(0, track, 1)
        assert (material.keeper.account.made, material.keeper.account.found) == (1, 1), setting
    assert len(list((data / "clips").rglob("*-1.safetensors"))) == 1 + len(settings)


def test_features_of_other_crops_at_the_same_frames_are_made_again(data: Path, depth: Path) -> None:
    def seen() -> tuple[NDArray[np.float16], int]:
        material, catalogue = made(configured(depth), data)
        _, clip = material.keeper.track(0, int(catalogue.track_N[0]))
        return clip.features_LE, material.keeper.account.made

    def written(box: tuple[float, float, float, float], picture: Any, margin: float) -> None:
        clip = Clip(video="real/0", faces={0: [box], 4: [box]}, picture=picture, columns={"label": 0})
        finished_run(Store(data), [clip], margin=margin)

    moved = (BOX[0] + 4, BOX[1], BOX[2] + 4, BOX[3])
    before = []
    for box, picture, margin in ((BOX, portrait, 1.3), (moved, portrait, 1.3), (BOX, faked, 1.3), (BOX, faked, 1.5)):
        written(box, picture, margin)
        features_LE, count = seen()
        assert count == 1
        before.append(features_LE)
        written(box, picture, margin)  # again, and the same
        again_LE, count = seen()
        assert count == 0
        assert np.array_equal(again_LE, features_LE)
    assert not any(np.array_equal(before[n], before[n + 1]) for n in range(2))


def test_crops_that_cannot_be_read_are_an_error_and_damaged_ones_are_not_kept(data: Path, depth: Path) -> None:
    def seen() -> list[int]:
        material, catalogue = made(configured(depth), data)
        found: list[int] = material.keeper.track(0, int(catalogue.track_N[0]))[1].state_L.tolist()
        return found

    store, faces = Store(data), Products(Store(data)).faces(0)
    path, offset = store.local_path(faces["crop_file"][0].as_py()), faces["crop_offset"][0].as_py()
    away = path.rename(path.with_suffix(".away"))
    with pytest.raises(StorageError, match=r"crops/.* cannot be read \(No such file"):
        seen()
    away.rename(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:offset] + bytes(64) + whole[offset + 64 :])
    assert seen() == [DAMAGED, GOOD, GOOD, GOOD, GOOD]
    assert not list((data / "clips").rglob("*.safetensors"))
    path.write_bytes(whole)
    assert seen() == [GOOD] * 5


def test_a_copy_is_of_one_draw(depth: Path, tmp_path: Path) -> None:
    """Of pictures that are all the same, those of a copy are all changed alike."""
    faces = {frame: [BOX] for frame in range(5)}
    clip = Clip(video="v", picture=lambda _: portrait(0), faces=faces, columns={"label": 0})
    finished_run(Store(tmp_path / "faces"), [clip], margin=1.3)
    material, catalogue = made(configured(depth), tmp_path / "faces")
    tracks = [material.keeper.track(0, int(catalogue.track_N[0]), copy)[1].features_LE for copy in range(9)]
    apart = [np.abs(features_LE - tracks[0]).max() for features_LE in tracks[1:]]
    assert sum(each > 1e-4 for each in apart) >= 4  # one draw in eight leaves a clip as it is
    assert max(np.ptp(features_LE, 0).max() for features_LE in tracks) < 2e-5


def test_copies_are_of_training_alone_and_of_one_draw_each(data: Path, depth: Path) -> None:
    config = configured(depth, "copies=8")
    material = Material.of(Catalogue.read([str(data)]), config, seed=0)
    train, val = material.train, material.val
    assert isinstance(train, FusedSamples)
    assert isinstance(val, FusedSamples)
    assert len(train.pool) == 9 * len(material.splits.train)
    assert len(val.pool) == len(material.splits.val)
    plain, *copies = train.tracks[:9]
    changed = [not np.array_equal(plain.features_PE, c.features_PE) for c in copies]
    assert sum(changed) >= 4  # one draw in eight leaves a clip as it is
    again = Material.of(Catalogue.read([str(data)]), config, seed=5).train
    assert isinstance(again, FusedSamples)
    assert all(np.array_equal(a.features_PE, b.features_PE) for a, b in zip(train.tracks, again.tracks, strict=True))


def test_a_file_that_was_cut_short_is_made_again(data: Path, depth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(depth)
    before = Material.of(Catalogue.read([str(data)]), config, seed=0)
    file = sorted((data / "clips").rglob("*.safetensors"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    after = Material.of(Catalogue.read([str(data)]), config, seed=0)
    assert f"{file.name} is cut short or of other crops; it is made again" in " ".join(capsys.readouterr().err.split())
    assert file.read_bytes() == whole
    assert isinstance(after.kept, FusedMaterial)
    assert (after.kept.keeper.account.made, after.kept.keeper.account.damaged) == (1, 1)
    assert isinstance(before.train, FusedSamples)
    assert isinstance(after.train, FusedSamples)
    pairs = zip(before.train.tracks, after.train.tracks, strict=True)
    assert all(np.array_equal(a.features_PE, b.features_PE) for a, b in pairs)


@pytest.mark.parametrize("damage", ["state", "finite"])
def test_a_file_that_says_what_cannot_be_is_made_again(damage: str, data: Path, depth: Path) -> None:
    material, catalogue = made(configured(depth), data)
    _, before = material.keeper.track(0, int(catalogue.track_N[0]))
    (file,) = (data / "clips").rglob("*.safetensors")
    tensors = load_file(file)
    if damage == "state":
        tensors["state"] = tensors["state"][:-1].copy()
    else:
        tensors["features"][0, 0] = np.nan
    save_file(tensors, file)
    _, after = material.keeper.track(0, int(catalogue.track_N[0]))
    assert np.array_equal(after.features_LE, before.features_LE)
    assert np.array_equal(after.state_L, before.state_L)
    assert (material.keeper.account.made, material.keeper.account.damaged) == (2, 1)


def test_features_of_another_configuration_are_refused(data: Path, depth: Path) -> None:
    config = configured(depth)
    Material.of(Catalogue.read([str(data)]), config, seed=0)
    record = sorted((data / "clips").rglob("key.json"))[0]
    record.write_text(record.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(
        StorageError, match=r"clips/\w+ are of another configuration than this one.*: remove that folder"
    ):
        Material.of(Catalogue.read([str(data)]), config, seed=0)


def test_depth_weights_that_are_missing_are_said(data: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"there is no folder .*nowhere with depth weights"):
        Material.of(Catalogue.read([str(data)]), config, seed=0)
