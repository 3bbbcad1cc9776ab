"""Distillation: the losses against their formulas, whose crops are whose, and a student of the command."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.products import ten_people, ten_real_people
from train.catalogue import Catalogue
from train.comparison import COMPARISON, compare
from train.config import DistillConfig, TrainConfig, overridden
from train.distill import Teachers, distilled, similarity, soft_loss
from train.ensemble import Ensemble, Member
from train.fit import app
from train.heldout import heldout_scores
from train.recipes import recipe
from train.splits import splits_of
from unmask.calibration import Calibration
from unmask.checkpoints import Description, describe, load, save
from unmask.errors import ModelError, UsageError
from unmask.manifest import Video
from unmask.models import ModelConfig, build
from unmask.provenance import USED, joined, overlap, used_digests
from unmask.storage import Store
from unmask.transforms import Preprocessing

INPUT = Preprocessing(size_px=32, margin=1.3, mean=(0.5,) * 3, std=(0.5,) * 3)
CPU = torch.device("cpu")


def checkpoint(path: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A teacher by self-blends, with random weights."""
    plain = overridden(recipe("selfblend"), ["model.pyramid=false", "loss.mask=0"])
    config = ModelConfig(**{"backbone": "test_efficientnet", "dropout": 0.3, **changes.pop("model", {})})
    model = build(config, seed=seed)
    description = Description(
        name=path.stem,
        version="1",
        config=config,
        preprocessing=changes.pop("preprocessing", INPUT),
        calibration=changes.pop("calibration", Calibration()),
        trained=True,
        provenance=changes.pop("provenance", {"config": plain.to_json()}),
    )
    save(path, model, description)
    return path


def member(path: Path) -> Member:
    return Ensemble.load([str(path)]).members[0]


def test_the_soft_loss_is_the_cross_entropy_with_the_mean_softened_probability() -> None:
    student, first, second = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).unbind()
    p = 0.75 / (1 + np.exp(-first.numpy() / 3)) + 0.25 / (1 + np.exp(-second.numpy() / 3))
    q = 1 / (1 + np.exp(-student.numpy() / 3))
    expected = 9 * np.mean(-p * np.log(q) - (1 - p) * np.log(1 - q))
    assert soft_loss(student, [first, second], [0.75, 0.25], 3.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_soft_loss_is_least_at_the_teachers_own_logits_and_keeps_its_slope() -> None:
    teacher = torch.tensor([-2.0, 0.5, 3.0])
    at_home = teacher.clone().requires_grad_(True)
    soft_loss(at_home, [teacher], [1.0], 4.0).backward()
    assert at_home.grad is not None
    assert at_home.grad.abs().max() < 1e-6
    slopes = []
    for temperature in (20.0, 40.0):
        away = (teacher + 0.1).requires_grad_(True)
        soft_loss(away, [teacher], [1.0], temperature).backward()
        assert away.grad is not None
        slopes.append(away.grad.sum().item())
    assert slopes[0] == pytest.approx(slopes[1], rel=0.05)  # T^2 keeps it


def test_similarity_asks_for_likeness_and_not_for_size() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_ME = torch.randn(5, 8, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    assert similarity(3 * teacher_ME @ turn, teacher_ME).item() == pytest.approx(0, abs=1e-10)
    student_MD = torch.randn(5, 3, generator=generator)
    cosines = [
        np.array([[np.dot(s, t) / np.linalg.norm(s) / np.linalg.norm(t) for s in rows] for t in rows])
        for rows in (student_MD.numpy(), teacher_ME.numpy())
    ]
    expected = np.mean((cosines[0] - cosines[1]) ** 2)
    assert similarity(student_MD, teacher_ME).item() == pytest.approx(expected, rel=1e-5)


def test_teachers_are_read_as_calibrated_and_at_their_own_size(tmp_path: Path) -> None:
    large = replace(INPUT, size_px=64)
    path = checkpoint(
        tmp_path / "t.safetensors", preprocessing=large, calibration=Calibration(temperature=2.0, bias=1.0)
    )
    teachers = Teachers(Ensemble((member(path),)), DistillConfig(), INPUT, clips=False)
    flat = torch.randint(0, 256, (3, 1, 1, 1, 3), dtype=torch.uint8).expand(3, 1, 32, 32, 3)
    said = teachers(flat, torch.ones(3, 1, dtype=torch.bool))
    model, _ = load(path)
    inputs = (flat[:, 0, 0, 0].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        features_ND = model.features(inputs[..., None, None].expand(3, 3, 64, 64))
        torch.testing.assert_close(said.logits[0], model.frame_logits(features_ND) / 2 + 1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said.features[0], features_ND, atol=1e-4, rtol=1e-3)


def test_a_teacher_of_frames_gives_clips_the_mean_of_its_probabilities(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "t.safetensors")
    pixels = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    valid_BT = torch.tensor([[True, True, False], [True, False, False]])
    frames = Teachers(Ensemble((member(path),)), DistillConfig(), INPUT, clips=False)(pixels, valid_BT).logits[0]
    (found,) = Teachers(Ensemble((member(path),)), DistillConfig(), INPUT, clips=True)(pixels, valid_BT).logits
    expected = torch.stack([frames[:2].sigmoid().mean(), frames[2].sigmoid()])
    torch.testing.assert_close(found.sigmoid(), expected)


def test_who_cannot_teach_is_said(tmp_path: Path) -> None:
    clips = checkpoint(tmp_path / "clips.safetensors", model={"head": "temporal", "window": 2})
    close = checkpoint(tmp_path / "close.safetensors", preprocessing=replace(INPUT, margin=1.0))
    opinions = checkpoint(tmp_path / "mos.safetensors", model={"head": "temporal", "task": "mos"})
    for path, error, says in (
        (clips, UsageError, "clips.safetensors judges clips and its student would not: set model.head=temporal"),
        (close, UsageError, r"takes crops with margin=1.0 and its student 1.3: make them one"),
        (opinions, ModelError, "mos predicts how real people find a fake"),
    ):
        with pytest.raises(error, match=says):
            Teachers(Ensemble((member(path),)), DistillConfig(), INPUT, clips=False)
    silent = checkpoint(tmp_path / "silent.safetensors", provenance={})
    with pytest.raises(UsageError, match="does not say how it was trained"):
        distilled(recipe("distill"), [str(silent)], None)


def test_the_recipe_is_that_of_the_first_teacher(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "t.safetensors", model={"pyramid": True, "window": 9})
    config = distilled(recipe("distill"), [f"{path}:0.5", f"{path}:0.5"], "test_resnet")
    assert (config.model.backbone, config.model.pyramid, config.model.dropout) == ("test_resnet", True, 0.3)
    assert (config.data, config.augment) == (recipe("selfblend").data, recipe("selfblend").augment)
    assert (config.loss.mask, config.input.size_px, config.input.margin) == (3.0, 32, 1.3)
    assert config.distill.teachers == (f"{path}:0.5", f"{path}:0.5")
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert overridden(config, ["temperature=5", "similarity=1"]).distill.similarity == 1.0


def test_what_teachers_were_made_from_the_student_has_seen() -> None:
    videos = [Video(video=f"a/{n}", uri=f"{n}.mp4") for n in range(4)]
    own, other = used_digests({"train": videos[:1]}), used_digests({"train": videos[1:2], "val": videos[2:3]})
    assert set(overlap({USED: joined([own, other])}, videos).seen) == {0, 1, 2}
    assert joined([own]) == own


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(ten_real_people(tmp_path_factory.mktemp("faces") / "faces"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"}, catch_exceptions=False)


def test_a_student_by_the_command(data: str, tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{name}.safetensors", seed=seed) for seed, name in enumerate(("first", "second"))]
    small = ["epochs=3", "batch=8", "ema=none", "pretrained=false", "fractions=[0.5,0.2,0.3]", "share=1.0", "lr=3e-3",
             "loader_workers=0", "warmup_steps=0"]  # fmt: skip
    sets = [part for each in small for part in ("--set", each)]
    result = run(
        "--recipe", "distill", "--teacher", f"{paths[0]}:0.75,{paths[1]}:0.25", "--student", "test_resnet", "--data",
        data, "--out", tmp_path / "out", "--device", "cpu", *sets,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / COMPARISON).read_text())
    student, first, second, both = found["models"]
    assert [m["name"] for m in found["models"]] == ["distill", "first", "second", "0.75 first + 0.25 second"]
    weights = [
        sum(p.numel() for p in load(p)[0].parameters()) for p in (tmp_path / "out" / "model.safetensors", *paths)
    ]
    assert found["weights"] == weights[0] / sum(weights[1:])
    assert all(row["ms_per_crop"] > 0 and row["bytes"] > 4 * row["weights"] for row in found["models"])
    assert both["bytes"] == first["bytes"] + second["bytes"]
    # They do not say whom they know; the student knows only its own.
    assert [said.partition(" ")[0] for said in found["caveats"]] == ["first", "second"]
    assert found["auc_lost"] == both["metrics"]["auc"]["value"] - student["metrics"]["auc"]["value"]
    assert both["metrics"]["auc"]["value"] == pytest.approx(together(data, tmp_path / "out", paths))
    provenance = describe(tmp_path / "out" / "model.safetensors").provenance
    assert str(tmp_path) not in json.dumps(provenance)
    assert provenance["config"]["distill"]["teachers"] == ["first.safetensors:0.75", "second.safetensors:0.25"]
    said = provenance["teachers"]
    assert said == [
        {"name": path.stem, "sha256": describe(path).sha256, "weight": weight}
        for path, weight in zip(paths, (0.75, 0.25), strict=True)
    ]
    rows = json.loads((tmp_path / "out" / "seed-0" / "history.json").read_text())["epochs"]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def used(data: str, *people: int) -> dict[str, Any]:
    """The provenance of a model that was trained on some of the ten people."""
    about = [video.about for video in Catalogue.read([data]).videos]
    return used_digests({"train": [each for each in about if int(each.identity[0][-1]) in people]})


def test_people_whom_a_teacher_knows_are_no_test_of_the_student(data: str, tmp_path: Path) -> None:
    """The same data was dealt out with other shares when the teacher was made: of three left now it knows two."""
    config = overridden(recipe("selfblend"), ["model.pyramid=false", "loss.mask=0", "fractions=[0.5,0.2,0.3]"])
    catalogue = Catalogue.read([data])
    numbers = [int(catalogue.videos[n].about.identity[0][-1]) for n in splits_of(catalogue, config, 0).test]
    assert len(numbers) == 3
    provenances = [{"config": config.to_json(), USED: used(data, *known)} for known in ((), numbers[:2], numbers)]
    plain, knowing, all_knowing = (
        str(checkpoint(tmp_path / f"{n}.safetensors", provenance=each)) for n, each in enumerate(provenances)
    )
    own, taught = (
        compare(plain, replace(config, distill=replace(config.distill, teachers=(t,))), [data], Store(tmp_path), CPU)
        for t in (plain, knowing)
    )
    (_, alone), (_, whole) = (
        next(iter(heldout_scores(*load(Path(plain)), config, [data], CPU, ["mixed"], others)))
        for others in ([describe(Path(knowing))], [])
    )
    assert (alone.videos, whole.videos) == (1, 3)
    losses = [found["models"][0]["metrics"]["log_loss"]["value"] for found in (taught, own)]
    assert losses == [judged.measures(0.5)["log_loss"]["value"] for judged in (alone, whole)]
    assert losses[0] != losses[1]
    assert taught["caveats"] == []
    config = replace(config, distill=replace(config.distill, teachers=(all_knowing,)))
    with pytest.raises(UsageError, match=r"nobody is left for the test: all 3 videos .* known to the models, such as "
                       r"faces/\S+ \(it, or a fake of it, was used in training\); take the data"):  # fmt: skip
        compare(plain, config, [data], Store(tmp_path), CPU)


def test_all_are_measured_on_the_videos_that_none_has_seen_and_keep_their_pages(tmp_path: Path) -> None:
    data = str(ten_people(tmp_path / "faces"))
    config = recipe("celebdf-mobilenet")
    paths = []
    for folder, people in (("student", range(7)), ("a", (4, 5)), ("b", (6,))):
        (tmp_path / folder).mkdir()
        provenance = {"config": config.to_json(), USED: used(data, *people)}
        paths.append(str(checkpoint(tmp_path / folder / "distill.safetensors", provenance=provenance)))
    config = replace(config, distill=replace(config.distill, teachers=tuple(paths[1:])))
    found = compare(paths[0], config, [data], Store(tmp_path / "out"), CPU)
    assert [row["name"] for row in found["models"]][:3] == ["distill", "distill (1)", "distill (2)"]
    pages = sorted((tmp_path / "out" / "evaluation").glob("*/evaluation.json"))
    assert len(pages) == 4
    for page in pages:
        videos = json.loads(page.read_text())["videos"]
        assert {row["video"].rpartition("/")[2] for row in videos} == {"7", "8", "9"}
    single = replace(config, distill=replace(config.distill, teachers=(paths[1],)))
    found = compare(paths[0], single, [data], Store(tmp_path / "single"), CPU)
    assert [row["name"] for row in found["models"]] == ["distill (student)", "distill"]
    assert len(list((tmp_path / "single" / "evaluation").glob("*/evaluation.html"))) == 2


def together(data: str, out: Path, paths: list[Path]) -> float:
    """The AUC of the weighted mean of two teachers' probabilities, by counting pairs."""
    config = TrainConfig.from_json(json.loads((out / "config.json").read_text())["config"])
    said = []
    for path in paths:
        model, description = load(path)
        ((_, judged),) = heldout_scores(model, description, config, [data], CPU, ["mixed"])
        said.append(judged)
    mean_K = 0.75 * said[0].probability_K + 0.25 * said[1].probability_K
    fakes, reals = mean_K[said[0].label_K == 1], mean_K[said[0].label_K == 0]
    return float(np.mean([(fake > real) + 0.5 * (fake == real) for fake in fakes for real in reals]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "distill", "--data", "x", "--out", "y"], "give --teacher CKPT"),
        (
            ["--recipe", "distill", "--teacher", "nowhere.safetensors", "--data", "x"],
            "no checkpoint nowhere.safetensors",
        ),
        (
            ["--recipe", "selfblend", "--teacher", "x", "--data", "x"],
            "--teacher and --student go with --recipe distill",
        ),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
