"""Models of RGB and depth: trained, and evaluated on the windows that they were validated on."""

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
from tests.fusion import CPU, SETTINGS, SMALL, configured, eight_people
from tests.products import BOX, Clip, finished_run
from train import evaluate, fit
from train.catalogue import Catalogue
from train.config import runs
from train.context import Context
from train.crops import CropReader
from train.ensemble import Ensemble
from train.evaluation import outcomes
from train.extractor import GOOD, NO_DEPTH
from train.fused_samples import FusedMaterial, FusedSamples
from train.loop import Training
from train.material import Material
from train.samplers import Key
from train.selection import select
from train.splits import splits_of
from unmask.checkpoints import Description, describe, save
from unmask.depth import DepthEstimator
from unmask.errors import Reason
from unmask.models import ForgeryModel, build
from unmask.products import Products
from unmask.records import Faces
from unmask.scoring import ScoringOptions
from unmask.storage import Store
from unmask.tally import Tally
from unmask.tracks import Sighting, TrackedFrame


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return eight_people(tmp_path / "faces")


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
