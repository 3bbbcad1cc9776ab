"""Clips of RGB and depth: how they are padded, kept, augmented, masked, trained on and evaluated."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from tests.depths import tiny_depth
from tests.heads import head
from tests.products import BOX, Clip, faked, finished_run, portrait
from train import evaluate, fit
from train.catalogue import AskedFrames, Catalogue
from train.config import TrainConfig, overridden, runs
from train.context import Context
from train.crops import CropReader
from train.ensemble import Ensemble
from train.evaluation import outcomes
from train.extractor import DAMAGED, GOOD, NO_DEPTH, padded
from train.fused_samples import FusedMaterial, FusedSamples, Track
from train.loop import Training
from train.material import Material, pool_of
from train.recipes import recipe
from train.samplers import Batches, Key, epoch_plan
from train.selection import select
from train.splits import splits_of
from unmask.checkpoints import Description, describe, save
from unmask.depth import DepthEstimator, as_rgb
from unmask.errors import ModelError, Reason, StorageError, UsageError
from unmask.models import ForgeryModel, build
from unmask.products import Products
from unmask.records import Faces
from unmask.scoring import ScoringOptions
from unmask.storage import Store
from unmask.tally import Tally
from unmask.tracks import Sighting, TrackedFrame
from unmask.transforms import to_tensor

CPU = torch.device("cpu")
SETTINGS = [
    "model.backbone=test_efficientnet", "heads=4", "layers=1", "hidden=16", "window=4", "pretrained=false",
    "size_px=32", "depth_px=56", "copies=1", "epochs=2", "batch=8", "loader_workers=0",
    "fractions=[0.5,0.25,0.25]", "lr=1e-3",
]  # fmt: skip
SMALL = (BOX[0], BOX[1], BOX[0] + 12, BOX[1] + 12)
HUGE = (20.0, 20.0, 300.0, 220.0)
LARGE = (BOX[0] - 8, BOX[1] - 8, BOX[2] + 8, BOX[3] + 8)


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight people, each real and fake: six frames looked at, no face in the fourth, a larger face in the last."""
    faces = {0: [BOX], 4: [BOX], 8: [BOX], 16: [BOX], 20: [LARGE]}
    clips = []
    for n in range(8):
        about = {"identity": [f"p{n}"]}
        seen = {"faces": faces, "faceless": frozenset({12})}
        clips.append(Clip(video=f"real/{n}", columns={"label": 0, **about}, **seen))
        clips.append(Clip(video=f"fake/{n}", picture=faked, columns={"label": 1, **about}, **seen))
    finished_run(Store(tmp_path / "faces"), clips, per_shard=20, margin=1.3)
    return tmp_path / "faces"


def configured(depth: Path, *more: str) -> TrainConfig:
    return overridden(recipe("ffpp-fusion"), [*SETTINGS, f"input.depth={depth}", *more])


def made(config: TrainConfig, data: Path, *, workers: int = 1) -> tuple[FusedMaterial, Catalogue]:
    catalogue, context = Catalogue.read([str(data)]), Context(device=CPU, workers=workers)
    preprocessing = config.input.preprocessing(config.model.backbone)
    return FusedMaterial(catalogue, CropReader(catalogue), config, preprocessing, context), catalogue


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


def test_missing_frames_are_masked_and_counted(data: Path, depth: Path) -> None:
    material = Material.of(Catalogue.read([str(data)]), configured(depth, "window=8"), seed=0)
    assert isinstance(material.train, FusedSamples)
    plan = epoch_plan(material.train.pool, material.catalogue, material.train.config.data, seed=0, epoch=0)
    todo = Batches(plan, 24)
    (keys,) = list(todo)
    batch = material.train.batch(keys)
    assert batch.pixels.shape == (24, 8, material.train.tracks[0].features_PE.shape[1])
    seen = torch.tensor([True, True, True, False, True, True, False, False])
    whole_B = batch.valid_BT.sum(1) == 5
    assert 6 <= whole_B.sum() <= 23  # the others are windows that end before the last face
    assert (batch.valid_BT[whole_B] == seen).all()
    for valid_T in batch.valid_BT[~whole_B]:
        count = int(valid_T.nonzero().max()) + 1
        assert valid_T[:count].equal(seen[:count])
    assert batch.pixels[~batch.valid_BT].abs().max() == 0
    assert isinstance(material.kept, FusedMaterial)
    told = material.kept.told()
    clips = 2 * len(material.splits.train)
    assert told["train"] == {
        "videos": clips // 2, "videos_without_usable_face": 0, "clips": clips, "clips_left_out": {},
        "frames": 6 * clips, "frames_masked": {"no_face": clips}, "clips_filled": -clips % 8,
    }  # fmt: skip


def test_what_gave_no_clip_is_counted_with_its_reason(depth: Path, tmp_path: Path) -> None:
    """Videos without a face, without a usable one, small and damaged faces, and what fills an epoch's last batch."""
    faces = {0: [BOX], 4: [SMALL], 12: [BOX]}
    seen = {"corrupt": frozenset({8}), "missing": frozenset({10})}
    clips = []
    for n in range(4):
        about = {"identity": [f"p{n}"]}
        clips.append(Clip(video=f"real/{n}", faces=faces, columns={"label": 0, **about}, **seen))
        clips += [Clip(video=f"fake/{n}-{k}", faces=faces, columns={"label": 1, **about}, **seen) for k in range(3)]
    tiny = {frame: [SMALL] for frame in faces}
    clips.append(Clip(video="tiny", faces=tiny, columns={"label": 0, "identity": ["p9"]}))
    for name, reason in (("none", "no_face"), ("empty", "no_face"), ("lost", "not_a_video")):
        clips.append(Clip(video=name, faces={}, status="failed", columns={"label": 0, "reason": reason}))
    finished_run(Store(tmp_path / "faces"), clips, per_shard=20, margin=1.3)
    config = configured(depth, "copies=0", "strategy=none", "draw=balanced", "batch=3", "fractions=[0.5,0.5,0]")
    material, catalogue = made(config, tmp_path / "faces", workers=2)
    pool = pool_of(catalogue, range(len(catalogue.videos)), config, "train")
    samples = material.samples(pool, "train", videos=len(catalogue.videos), copies=0, seed=0)
    told = material.told()
    assert told["videos_without_face"] == {"no_face": 2, "not_a_video": 1}
    assert told["train"] == {
        "videos": 17, "videos_without_usable_face": 1, "clips": 16, "clips_left_out": {}, "frames": 5 * 16,
        "frames_masked": {"face_too_small": 16, "corrupt_frame": 16, "missing_frame": 16},
        "clips_filled": 4,  # four reals and as many fakes, in threes on each of two workers
    }  # fmt: skip
    longer, _ = made(overridden(config, ["steps_per_epoch=5"]), tmp_path / "faces", workers=2)
    longer.samples(pool, "train", videos=len(catalogue.videos), copies=0, seed=0)
    assert longer.report["train"]["clips_filled"] == 5 * 6 - 8
    assert samples.tracks[0].valid_P.tolist() == [True, False, False, False, True]
    both = Material.of(catalogue, config, seed=0).kept
    assert isinstance(both, FusedMaterial)
    parts = [both.report[name] for name in ("train", "val")]
    assert [sum(part[what] for part in parts) for what in ("videos", "videos_without_usable_face")] == [17, 1]


def test_faces_beside_larger_ones_are_seen_and_frames_that_are_passed_over_are_said(
    depth: Path, tmp_path: Path
) -> None:
    """Evaluation sees a face whichever is the largest in its frame; so does training."""
    both = {frame: [BOX] if frame % 8 else [BOX, HUGE] for frame in range(0, 40, 4)}
    finished_run(Store(tmp_path / "faces"), [Clip(video="v", faces=both, columns={"label": 0})], margin=1.3)

    for settings, valid, masked in (((), 10, {}), (("frames_per_video=4",), 2, {"not_taken": 8})):
        config = configured(depth, *settings)
        material, catalogue = made(config, tmp_path / "faces")
        pool = pool_of(catalogue, [0], config, "train")
        (track,) = material.samples(pool, "train", videos=1, copies=0, seed=0).tracks
        assert (int(track.valid_P.sum()), track.masked) == (valid, masked)


class Patchy(DepthEstimator):
    """Has no map for the crops that it is told, counted over all."""

    def __init__(self, inner: DepthEstimator, fails: set[int]) -> None:
        self.__dict__.update(inner.__dict__)
        self.fails, self.seen = fails, 0

    def maps(self, crops: Any) -> list[NDArray[np.uint8] | None]:
        found = super().maps(crops)
        first, self.seen = self.seen, self.seen + len(crops)
        return [None if first + n in self.fails else each for n, each in enumerate(found)]


def test_a_failed_map_is_masked_and_a_clip_without_any_is_left_out_and_named(data: Path, depth: Path) -> None:
    config = configured(depth)
    material, catalogue = made(config, data)
    extractor = material.keeper.extractor
    extractor.depth = Patchy(extractor.depth, {1, *range(5, 10)})
    pool = pool_of(catalogue, splits_of(catalogue, config, 0).train, config, "train")
    samples = material.samples(pool, "train", videos=len(pool), copies=0, seed=0)
    assert len(samples.pool) == len(pool) - 1
    assert samples.tracks[0].valid_P.tolist() == [True, False, True, False, True, True]
    assert material.report["train"]["frames_masked"] == {"depth_failed": 6, "no_face": len(pool)}
    learnt = sum(int(track.valid_P.sum()) for track in samples.tracks)
    assert material.report["train"]["frames"] == 6 * len(pool) == learnt + 6 + len(pool)
    name = catalogue.videos[pool.video_U[1]].key
    assert material.report["train"]["clips_left_out"] == {f"{name} copy 0": {"depth_failed": 5, "no_face": 1}}
    (said,) = material.notes
    assert (
        f"a clip of train is left out, such as {name} copy 0: every frame of it is masked (5 depth_failed, 1 no_face)"
        in said
    )
    nothing, _ = made(overridden(config, ["depth_px=70"]), data)
    nothing.keeper.extractor.depth = Patchy(nothing.keeper.extractor.depth, set(range(1000)))
    with pytest.raises(UsageError, match=r"no clip of the split val has a frame with a depth map \(10 depth_failed"):
        nothing.samples(
            pool_of(catalogue, splits_of(catalogue, config, 0).val[:2], config, "val"),
            "val",
            videos=2,
            copies=0,
            seed=0,
        )


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


def test_places_follow_the_frames() -> None:
    class Kept:
        features_LE = np.ones((4, 2), np.float16)
        state_L = np.array([GOOD, GOOD, NO_DEPTH, GOOD], np.uint8)

    asked = AskedFrames(
        np.array([0, 10, 20, 31, 42, 50, 60, 70], np.int32), np.arange(8.0), {0: "corrupt_frame", 4: "corrupt_frame"}
    )
    frames = np.array([10, 20, 31, 60], np.int32)
    track = Track.of(np.arange(4), Kept(), frames, [None, "face_too_small", None, None], asked)  # type: ignore[arg-type]
    assert track.valid_P.tolist() == [True, False, False, False, False, True]
    assert track.masked == {"depth_failed": 1, "no_face": 1, "corrupt_frame": 1, "face_too_small": 1}


def test_places_are_those_of_the_frames_however_few_have_a_face() -> None:
    """A face in every other frame only: the frames between are holes, and not another sampling."""

    class Kept:
        features_LE = np.ones((3, 2), np.float16)
        state_L = np.full(3, GOOD, np.uint8)

    asked = AskedFrames(np.arange(5, dtype=np.int32), np.arange(5.0), {})
    track = Track.of(np.arange(3), Kept(), np.array([0, 2, 4], np.int32), [None] * 3, asked)  # type: ignore[arg-type]
    assert track.valid_P.tolist() == [True, False, True, False, True]


def run(app: Any, *arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"}, catch_exceptions=False)


def test_from_crops_to_an_evaluation_by_two_commands(data: Path, depth: Path, tmp_path: Path) -> None:
    sets = [part for each in (*SETTINGS, f"input.depth={depth}") for part in ("--set", each)]
    out = tmp_path / "out"
    result = run(fit.app, "--recipe", "ffpp-fusion", "--data", data, "--out", out, "--device", "cpu", *sets)
    assert result.exit_code == 0, result.output
    assert "made in" in " ".join(result.stderr.split())
    told = json.loads((out / "seed-0" / "clips.json").read_text())
    assert told["kept_features"]["made"] == told["kept_features"]["clips"] > 0
    document = json.loads((out / "evaluation" / "evaluation.json").read_text())
    assert document["results"]["overall"]["video"]["metrics"]["auc"]["value"] is not None
    model = out / "model.safetensors"
    unseen = ("--model", model, "--data", data, "--split", "unseen", "--out", tmp_path / "e")
    command = (*unseen, "--depth-weights", depth)
    result = run(evaluate.app, *command)
    assert result.exit_code == 0, result.output
    assert "features of 4 clips: 4 kept, 0 made" in " ".join(result.stderr.split())
    again = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert again["videos"] == document["videos"]
    result = run(evaluate.app, *command, "--robustness")
    assert result.exit_code == 2
    assert "which are kept for clean crops: leave out --robustness" in " ".join(result.stderr.split())
    weights = depth / "model.safetensors"
    moved = weights.rename(tmp_path / "gone")
    result = run(evaluate.app, *command)
    moved.rename(weights)
    assert result.exit_code == 2
    assert "holds no depth network in safetensors" in " ".join(result.stderr.split())

    # Of the machine it was trained on the checkpoint tells neither folders nor videos.
    told = describe(model).provenance
    assert told["config"]["input"]["depth"] == depth.name
    said = json.dumps(told)
    assert str(tmp_path) not in said
    assert str(depth.parent) not in said
    assert str(data.parent) not in said
    assert told["clips"]["train"]["clips_left_out"] == 0
    result = run(evaluate.app, *unseen)
    assert result.exit_code == 2
    says = f"was trained with depth weights of a folder called {depth.name}: give --depth-weights DIR, the folder"
    assert says in " ".join(result.stderr.split())
    result = run(evaluate.app, *unseen, "--depth-weights", "random")
    assert result.exit_code == 2
    assert "the depth weights random are others than" in " ".join(result.stderr.split())


def test_a_video_with_every_frame_masked_is_evaluated_as_one_without_a_score(
    data: Path, depth: Path, tmp_path: Path
) -> None:
    sets = [part for each in (*SETTINGS, f"input.depth={depth}", "epochs=1") for part in ("--set", each)]
    out, store = tmp_path / "out", Store(data)
    command = ("--recipe", "ffpp-fusion", "--data", data, "--out", out, "--device", "cpu", "--no-evaluate", *sets)
    assert run(fit.app, *command).exit_code == 0
    catalogue = Catalogue.read([str(data)])
    lost = catalogue.videos[splits_of(catalogue, configured(depth), 0).test[0]]
    crops = {row["crop_file"] for row in Products(store).faces(0).to_pylist()}
    good = {name: store.read(name) for name in crops}
    for row in Products(store).faces(0).to_pylist():
        if row["video"] == lost.about.video.removeprefix(f"{lost.dataset}/"):
            path = store.local_path(row["crop_file"])
            whole = bytearray(path.read_bytes())
            whole[row["crop_offset"] : row["crop_offset"] + 64] = bytes(64)
            path.write_bytes(bytes(whole))
    arguments = ("--model", out / "model.safetensors", "--data", data, "--split", "unseen", "--out", tmp_path / "e",
                 "--depth-weights", depth)  # fmt: skip
    result = run(evaluate.app, *arguments)
    assert result.exit_code == 0, result.output
    assert "5 crop_damaged" in " ".join(result.stderr.split())
    page = (tmp_path / "e" / "evaluation.json").read_text()
    assert "Damaged crops, whose frames count as frames that could not be seen: 5." in page
    rows = {row["video"]: row for row in json.loads((tmp_path / "e" / "evaluation.json").read_text())["videos"]}
    # In the sixth frame is no face: there were faces all the same.
    assert (rows[lost.key]["status"], rows[lost.key]["score"]) == ("failed", None)
    assert rows[lost.key]["reason"] == "corrupt_frame"
    assert sum(row["score"] is not None for row in rows.values()) == len(rows) - 1

    # The same where the crops are good again and the maps are not, as kept features say it.
    for name, content in good.items():
        store.write(name, content)
    assert run(evaluate.app, *arguments).exit_code == 0
    rows = {row["video"]: row for row in json.loads((tmp_path / "e" / "evaluation.json").read_text())["videos"]}
    assert (rows[lost.key]["status"], rows[lost.key]["reason"]) == ("scored", None)
    (file,) = (data / "clips").rglob(f"{lost.about.video.removeprefix(f'{lost.dataset}/')}-*-0.safetensors")
    tensors = load_file(file)
    tensors["state"] = np.full_like(tensors["state"], NO_DEPTH)
    save_file(tensors, file)
    result = run(evaluate.app, *arguments)
    assert "5 depth_failed" in " ".join(result.stderr.split())
    assert "Damaged crops" not in (tmp_path / "e" / "evaluation.json").read_text()
    document = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert {(row["status"], row["reason"]) for row in document["videos"]} == {
        ("scored", None), ("unscored", "depth_failed")
    }  # fmt: skip


def test_features_of_another_configuration_are_one_sentence_of_the_command(
    data: Path, depth: Path, tmp_path: Path
) -> None:
    Material.of(Catalogue.read([str(data)]), configured(depth), seed=0)
    record = sorted((data / "clips").rglob("key.json"))[0]
    record.write_text(record.read_text().replace('"format": 1', '"format": 0'))
    sets = [part for each in (*SETTINGS, f"input.depth={depth}") for part in ("--set", each)]
    command = ("--recipe", "ffpp-fusion", "--data", data, "--out", tmp_path / "out", "--device", "cpu", *sets)
    result = run(fit.app, *command)
    assert result.exit_code in (1, 2)
    said = " ".join(result.stderr.split())
    assert "are of another configuration than this one" in said
    assert "Traceback" not in said


def test_whatever_is_left_out_trains_an_epoch_on_the_same_features(data: Path, depth: Path, tmp_path: Path) -> None:
    for n, flag in enumerate(("layers=1", "streams=rgb", "streams=depth", "cross=none", "cross=rgb", "cross=depth",
                              "residuals=false")):  # fmt: skip
        config = configured(depth, "epochs=1", f"model.fusion.{flag}")
        material = Material.of(Catalogue.read([str(data)]), config, seed=0)
        assert isinstance(material.kept, FusedMaterial)
        account = material.kept.keeper.account
        assert (account.made == 0, account.found == 0) == (n > 0, n == 0)
        (run,) = runs(config)
        training = Training(run, material, Store(tmp_path / flag), Context(device=CPU))
        head = training.network.model.head
        before = [parameter.detach().clone() for parameter in head.parameters()]
        training.fit()
        assert training.progress.updates == 2
        assert all(not torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True)), flag


def test_scores_of_a_video_are_of_windows_of_its_features(data: Path, depth: Path) -> None:
    """The tally's windows end with each face, and keep a place for the frames without it."""
    config = configured(depth, "window=2")
    model: ForgeryModel = build(config.model)
    description = Description(
        name="f", version="1", config=config.model, preprocessing=config.input.preprocessing("test_efficientnet")
    )
    features_NE = np.random.default_rng(0).normal(size=(5, model.frame_dim)).astype(np.float32)
    faces = Faces(np.array([BOX], np.float32), np.ones(1, np.float32), np.zeros((1, 5, 2), np.float32))
    frames = [(TrackedFrame(float(n), n, faces, [Sighting(0, n == 3)], None), features_NE[n : n + 1]) for n in range(5)]
    frames[2] = (TrackedFrame(2.0, 2, Faces.none(), (), Reason.NO_FACE), features_NE[:0])
    tally = Tally(model, description, ScoringOptions(min_face_px=1))
    scores = np.concatenate([found for _, found in tally.follow(frames)])
    windows = [[0], [0, 1], [2, 3], [3, 4]]
    for score, window in zip(scores, windows, strict=True):
        clip = torch.from_numpy(features_NE[window])[None]
        logit = model.clip_logits(clip, torch.tensor(window)[None] != 2).item()
        assert score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)


@pytest.mark.parametrize("first", [GOOD, NO_DEPTH, "small"])
def test_what_is_validated_are_the_windows_of_evaluation(
    first: int | str, data: Path, depth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every window that `unmask evaluate` gives the model is one that validation draws, and the other way round."""
    config = configured(depth, "window=3")
    if first == "small":
        faces = {0: [SMALL], 4: [BOX], 8: [BOX], 16: [BOX], 20: [BOX], 24: [BOX]}
        clips = [
            Clip(video=f"{n}-{label}", faces=faces, columns={"label": label, "identity": [f"p{n}"]})
            for n in range(8)
            for label in (0, 1)
        ]
        finished_run(Store(data), clips, per_shard=20, margin=1.3)
    elif first == NO_DEPTH:
        Material.of(Catalogue.read([str(data)]), config, seed=0)
        for file in (data / "clips").rglob("*.safetensors"):
            tensors = load_file(file)
            tensors["state"][0] = NO_DEPTH
            save_file(tensors, file)
    material = Material.of(Catalogue.read([str(data)]), config, seed=0)
    assert isinstance(material.val, FusedSamples)
    pool = material.val.pool
    drawn = {
        _named(*material.val.clip(Key(-1, position, unit)))
        for unit in range(len(pool))
        for position in range(100 * unit, 100 * unit + 100)
    }
    path = data.parent / "m.safetensors"
    weights = {"sha256": DepthEstimator.load(str(depth), size_px=56).sha256}
    about = Description(
        name="f", version="1", config=config.model, preprocessing=material.preprocessing,
        provenance={"config": config.to_json(), "depth": weights},
    )  # fmt: skip
    assert isinstance(material.kept, FusedMaterial)
    save(path, material.kept.model, about)
    seen: list[str] = []
    judge = ForgeryModel.clip_logits

    def watched(self: ForgeryModel, clips_NTE: torch.Tensor, valid_NT: torch.Tensor) -> torch.Tensor:
        pairs = zip(clips_NTE.numpy(), valid_NT.numpy(), strict=True)
        seen.extend(_named(clip_TE.astype(np.float16), valid_T) for clip_TE, valid_T in pairs)
        return judge(self, clips_NTE, valid_NT)

    monkeypatch.setattr(ForgeryModel, "clip_logits", watched)
    selection = select(material.catalogue, "all", Ensemble(()))
    (member,) = Ensemble.load([str(path)]).members
    outcomes(
        member,
        selection,
        CropReader(material.catalogue),
        ScoringOptions(),
        batch=8,
        depth=str(depth),
        videos=pool.video_U.tolist(),
    )
    assert len(seen) == (4 if first == NO_DEPTH else 5) * len(pool)
    assert set(seen) == drawn


def _named(clip_TE: NDArray[np.float16], valid_T: NDArray[np.bool_]) -> str:
    return f"{valid_T.tolist()} {hashlib.sha256(clip_TE.tobytes()).hexdigest()}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["freeze=none"], "keeps its own features: it needs loop.freeze=backbone"),
        (["draw=pairs"], "takes data.draw=all or balanced"),
        (["copies=0"], "set data.copies and augment.strategy, or neither"),
        (["head=temporal"], "data.copies goes with model.head=fusion"),
        (["copies=-1"], "data.copies is 0 or more"),
        (["alignment=0.1"], "this model.head takes clips"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        overridden(recipe("ffpp-fusion"), settings)


def test_depth_weights_that_are_missing_are_said(data: Path, tmp_path: Path) -> None:
    config = configured(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"there is no folder .*nowhere with depth weights"):
        Material.of(Catalogue.read([str(data)]), config, seed=0)
