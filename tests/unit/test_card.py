"""Model cards: what a description says, what was measured, as text and JSON."""

import json
from dataclasses import replace
from typing import get_args

import pytest
from typer.testing import CliRunner

from unmask.calibration import Calibration
from unmask.card import CARD, Section, card_json, card_markdown, model_card
from unmask.checkpoints import Description, save
from unmask.cli import app
from unmask.models import Head, ModelConfig, build
from unmask.provenance import USED
from unmask.transforms import Preprocessing

CONFIG = ModelConfig(backbone="test_efficientnet", head="temporal", window=5)
RESULTS = Section(
    "Test people", ("With intervals.",), ("what", "AUC", "note"), (("a, b", 0.98765, None), ("c", 0.5, "x"))
)
MADE = Description(
    name="tiny",
    version="1.2",
    config=CONFIG,
    preprocessing=Preprocessing(size_px=96),
    calibration=Calibration(temperature=1.5, threshold=0.6, band=(0.4, 0.6), fitted=True, source="9 clips"),
    trained=True,
    provenance={"recipe": "selfblend", "validation": {"auc": 0.9}, USED: {"train": "AAAA"}, CARD: [RESULTS.to_json()]},
)


def test_a_section_survives_json() -> None:
    assert Section.from_json(json.loads(json.dumps(RESULTS.to_json()))) == RESULTS
    assert Section.from_json({"title": 3, "rows": [[True, [1]]]}) == Section("3", rows=(("True", "[1]"),))


def test_the_card_says_what_the_description_and_the_measurements_say() -> None:
    titles = [section.title for section in model_card(MADE)]
    assert titles == ["What it is", "How its scores are read", "What it was made from", "Test people"]
    text = card_markdown(MADE)
    assert "up to 5 frames of one face" in text
    assert "fitted on 9 clips. " in text
    assert "where half of all videos are fakes" in text
    assert "The threshold is 0.600. Scores from 0.400 to 0.600 are inconclusive." in text
    assert "auc 0.900" in text
    assert "AAAA" not in text


def test_its_tables_are_markdown() -> None:
    table = [line for line in card_markdown(MADE).splitlines() if line.startswith("|")][-4:]
    assert table == [
        "| what |   AUC | note |",
        "|------|------:|------|",
        "| a, b | 0.988 | -    |",
        "| c    | 0.500 | x    |",
    ]


def test_a_model_that_knows_nothing_says_so() -> None:
    text = card_markdown(replace(MADE, trained=False, provenance={}, calibration=Calibration()))
    assert "never trained" in text
    assert "not calibrated." in text
    assert "they order videos" in card_markdown(replace(MADE, calibration=Calibration()))
    assert "Nobody has written down" in card_markdown(replace(MADE, provenance={}))


@pytest.mark.parametrize("head", get_args(Head))
def test_every_head_is_described(head: Head) -> None:
    text = model_card(replace(MADE, config=replace(CONFIG, head=head, backbone="mobilenetv3_small_100")))[0].text[0]
    assert "judges" in text or "linear head" in text or "joins" in text


def test_as_json_it_has_no_digests_of_people() -> None:
    plain = card_json(MADE)
    assert USED not in plain["provenance"]
    assert plain["card"][-1] == RESULTS.to_json()
    json.dumps(plain, allow_nan=False)


def test_the_command_prints_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "tiny.safetensors"
    save(path, build(CONFIG), MADE)
    shown = CliRunner().invoke(app, ["model-card", str(path)])
    assert shown.exit_code == 0
    assert shown.stdout == card_markdown(replace(MADE, sha256=shown.stdout.splitlines()[2].split()[1]))
    as_json = CliRunner().invoke(app, ["model-card", str(path), "--json"])
    assert json.loads(as_json.stdout)["card"][-1] == RESULTS.to_json()
    preset = CliRunner().invoke(app, ["model-card", "dfdc-b7"])
    assert preset.exit_code == 0, "a preset's card takes no weights"
    assert "tf_efficientnet_b7" in preset.stdout
    missing = CliRunner().invoke(app, ["model-card", str(tmp_path / "none.safetensors")])
    assert missing.exit_code == 2
