"""The small model's last step: calibrated, tried, in half precision, with its card; steps that are done are kept."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.products import BOX, Clip, finished_run
from train import release_card
from train.card_text import sections
from train.catalogue import Catalogue
from train.config import TrainConfig, overridden
from train.context import Context
from train.recipes import recipe
from train.release import app
from train.release_card import finish
from train.splits import splits_of
from train.trial import CONDITIONS, FAMILIES, Trial
from train.worker import Task, train_all
from unmask.card import card_markdown
from unmask.checkpoints import describe, load, save
from unmask.errors import UsageError
from unmask.storage import Store

SETTINGS = ["backbone=test_efficientnet", "size_px=48", "pretrained=false", "epochs=1", "batch=4",
            "fractions=[0.4,0.3,0.3]", "channels_last=false", "loader_workers=0"]  # fmt: skip


def trained(name: str, faces: str, out: Path, *settings: str) -> Path:
    config = overridden(recipe(name), [*SETTINGS, "pyramid=false", *settings])
    train_all(Task(config=config, data=(faces,), out=str(out), cache=None), Context(device=torch.device("cpu")), print)
    return out / "seed-0" / "best.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("release")
    faces = str(folder / "faces")
    clips = [Clip(video=f"v{n}", faces={0: [BOX]}, columns={"label": 0}) for n in range(10)]
    finished_run(Store(faces), clips, margin=1.5)
    frames = trained("selfblend", faces, folder / "frames", "loss.mask=0")
    model = trained("selfblend-clips", faces, folder / "clips", "window=2", f"weights={frames}")
    turned(model, frames, faces)
    return {"model": model, "frames_model": frames, "plain_model": frames, "faces": faces}


def turned(model: Path, frames: Path, faces: str) -> None:
    """One epoch on four faces teaches nothing: have each model say the opposite where it is wrong more often."""
    config = TrainConfig.from_json(dict(describe(model).provenance)["config"])
    catalogue = Catalogue.read([faces])
    people = splits_of(catalogue, config, 0).val
    for path in (model, frames):
        network, description = load(path)
        trial = Trial(catalogue, people, config, {"it": (network, description)}, torch.device("cpu"))
        outcome = trial.run(CONDITIONS["shared"], draws=4, seed=2)
        logits_K = outcome.logits["it"]
        if logits_K[outcome.labels_K == 1].mean() < logits_K[outcome.labels_K == 0].mean():
            last = [module for module in network.head.modules() if isinstance(module, torch.nn.Linear)][-1]
            with torch.no_grad():
                last.weight.neg_()
                last.bias.neg_()
            save(path, network, description)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few clips: an error rate of 0.02 takes 50."""
    monkeypatch.setattr(release_card, "FPR", 0.2)
    monkeypatch.setattr(release_card, "FNR", 0.2)
    monkeypatch.setattr(release_card, "_CALIBRATION_DRAWS", 4)
    monkeypatch.setattr(release_card, "_HELDOUT_DRAWS", 1)
    monkeypatch.setattr(release_card, "FAMILIES", {"hull": FAMILIES["hull"]})
    monkeypatch.setattr(release_card, "_PERTURBED_PEOPLE", 1)


def test_the_model_is_calibrated_and_carries_what_was_measured(
    made: dict[str, Any], small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finish(**made, clips=[], folder=tmp_path, name="small")
    description = describe(path)
    assert description.name == "small"
    assert description.calibration.fitted
    low, high = description.calibration.band
    assert 0 <= low <= high == description.calibration.threshold
    assert path.stat().st_size < 0.7 * made["model"].stat().st_size
    card = card_markdown(description)
    measured = json.loads((tmp_path / "heldout.json").read_text())["found"]["shared"]["models"]["shipped"]
    assert f"{measured['auc']['value']:.3f}" in card
    assert f"way of shared videos, {measured['real_called_manipulated']:.1%} are called manipulated" in card
    assert "4 people to train, 3 to choose" in card
    assert re.search(r"each of 1 test people.*\n\n.*\n.*\n\| none +\| 0: [01]\.\d{3}, \d+% ", card)
    # A second time nothing is measured again, and the same file comes out. What is no measurement is made anew.
    (tmp_path / "speed.json").write_text('{"found": {}')
    for name in ("_calibrated", "_tried", "_perturbed", "_scored"):
        monkeypatch.setattr(release_card, name, lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(release_card, "_speed", lambda _: {"ms_a_face": 1.0})
    assert describe(finish(**made, clips=[], folder=tmp_path, name="small")).calibration == description.calibration
    assert json.loads((tmp_path / "speed.json").read_text())["found"] == {"ms_a_face": 1.0}
    # On more people it is.
    monkeypatch.setattr(release_card, "_PERTURBED_PEOPLE", 2)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        finish(**made, clips=[], folder=tmp_path, name="small")


def test_another_kind_of_model_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was not made by the recipe selfblend-clips"):
        finish(**{**made, "model": made["frames_model"]}, clips=[], folder=tmp_path, name="small")


def measure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.05}


def under(title: str, auc: float, *models: str) -> dict[str, Any]:
    metrics = {"auc": measure(auc), "eer": measure(0.2), "ece": measure(0.15), "ece_by_chance": 0.06, "people": 4,
               "real_called_manipulated": 0.01, "fake_called_authentic": 0.2, "inconclusive": 0.3}  # fmt: skip
    return {"title": title, "clips": 8, "models": dict.fromkeys(models, metrics)}


def clip(video: str, label: int | None, score: float | None, verdict: str, source: str | None = None) -> dict[str, Any]:
    status = "unscored" if score is None else "scored"
    models = {name: {"score": score, "verdict": verdict, "status": status} for name in ("shipped", "frames", "plain")}
    return {"video": video, "label": label, "method": None, "source": source, "models": models}


def test_what_was_measured_is_told() -> None:
    facts = {"people": {"train": 1, "val": 2, "test": 3}, "weights": 10**6, "speed": {"ms_a_face": 5.0}, "history": "",
             "portraits": "Photographs of nobody."}  # fmt: skip
    scored = [clip("a", 0, 0.2, "authentic"), clip("b", 0, 0.9, "manipulated"), clip("fa", 1, 0.3, "inconclusive", "a"),
              clip("fb", 1, 0.7, "manipulated", "b"), clip("fc", 1, 0.7, "authentic", "not here"),
              clip("c", 0, None, "inconclusive"), clip("d", None, 0.5, "inconclusive")]  # fmt: skip
    robust = [{"title": "blur", "value": 2.0, "people": 5, "auc": measure(0.7), "real_called_manipulated": 0.2}]
    found = sections(
        facts,
        heldout={"shared": under("all", 0.9, "shipped")},
        compared={"clean": under("photographs", 0.8, "shipped", "frames", "plain")},
        families={name: under(name, auc, "shipped") for name, auc in (("one", 0.9), ("two", 0.6), ("three", 0.7))},
        robust=robust,
        scored=scored,
    )
    by_title = {section.title: section for section in found}
    text = " ".join(by_title["Real videos"].text)
    assert "Of 3 real clips 1 are called manipulated, 1 authentic" in text
    assert "of 3 fakes 1 are called manipulated, 1 authentic" in text
    assert "In 1 of 2 pairs the fake scores above its original" in text
    assert by_title["Real videos"].rows[5][3:5] == (None, "unscored")
    assert by_title["Real videos"].rows[6][1] == "-"
    rows = by_title["Test people: self-blended against pristine clips"].rows
    assert [row[0] for row in rows] == ["all", "one", "two", "three"]
    assert rows[0][2:] == ("0.900 (0.800 to 0.950)", "0.200 (0.100 to 0.250)", "0.150 (0.060)")
    assert "Of 4 real clips of 4 test people" in by_title["Operating point"].text[0]
    assert "1.0% are called manipulated" in by_title["Operating point"].text[0]
    assert by_title["What each ingredient gives: AUC on the same clips"].rows[0][0] == "photographs"
    assert "misses most: two, AUC 0.600; three, AUC 0.700." in by_title["Known failures"].text[-1]
    assert by_title["Data"].text[0].startswith("Photographs of nobody. One photograph a person: 1 people to train")
    (title,) = (title for title in by_title if title.startswith("Robustness"))
    assert by_title[title].rows == (("blur", "2: 0.700, 20%"),)
    assert "5 test people" in by_title[title].text[0]


@pytest.mark.parametrize("option", ["--weights", "--frames-model", "--plain-model", "--clips"])
def test_what_is_not_there_is_said_before_anything_is_done(option: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path), "--out", str(tmp_path / "out"), option, str(tmp_path / "gone")])
    assert result.exit_code == 2
    assert f"there is no {tmp_path / 'gone'}" in result.stderr
    assert not (tmp_path / "out").exists()
