"""The model that comes with Unmask: small, whole, trained, calibrated, with a card; and the verdicts of the demo."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from unmask.analysis import Analyzer
from unmask.card import card_markdown
from unmask.checkpoints import describe, load
from unmask.demo import make_clips
from unmask.errors import ModelError, Reason
from unmask.inputs import Source
from unmask.plan import Sampling
from unmask.presets import DEFAULT_MODEL, WEIGHTS_DIR, resolve

SHIPPED = WEIGHTS_DIR / f"{DEFAULT_MODEL}.safetensors"


def test_it_is_small_and_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    assert SHIPPED.stat().st_size <= 10_000_000
    model, description = resolve()
    assert description == describe(SHIPPED)
    assert description.name == DEFAULT_MODEL
    assert description.trained
    assert model.is_temporal
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) < 4_000_000


def test_it_is_calibrated_and_abstains_between_its_thresholds() -> None:
    calibration = describe(SHIPPED).calibration
    assert calibration.fitted
    low, high = calibration.band
    assert 0 < low < high == calibration.threshold < 1
    assert "people of validation" in calibration.source


def test_its_card_says_what_it_must() -> None:
    card = card_markdown(describe(SHIPPED))
    for heading in (
        "Data",
        "Method",
        "Size and speed",
        "Operating point",
        "Known failures",
        "What it must not be used for",
        "Real videos",
        "Test people: self-blended against pristine clips",
        "What each ingredient gives: AUC on the same clips",
        "Robustness: value of the perturbation, AUC, and real clips called manipulated",
    ):
        assert f"\n## {heading}\n" in card
    assert re.search(r"all fakes, as shared videos +\| +\d+ \| 0\.\d{3} \(0\.\d{3} to [01]\.\d{3}\)", card)
    assert re.search(r"\| none +\| 0: 0\.\d{3}, \d+% ", card)
    assert re.search(r"In \d+ of \d+ pairs the fake scores above its original", card)


@pytest.mark.parametrize("place", [0.3, 0.9])
def test_a_tampered_file_is_refused(place: float, tmp_path: Path) -> None:
    data = bytearray(SHIPPED.read_bytes())
    data[int(place * len(data))] ^= 1
    (tmp_path / SHIPPED.name).write_bytes(data)
    with pytest.raises(ModelError) as refused:
        load(tmp_path / SHIPPED.name)
    assert refused.value.reason is Reason.CHECKPOINT_HASH


def test_it_tells_the_clips_of_the_demo(tmp_path: Path) -> None:
    authentic, blended, faceless, _ = make_clips(tmp_path)
    analyzer = Analyzer.load(device="cpu")
    scores = [analyzer.analyze(Source(str(p)), Sampling(frames=32)).score for p in (authentic, blended, faceless)]
    assert [s.verdict.value for s in scores[:2]] == ["authentic", "manipulated"]
    assert scores[2].score is None
    assert all(s.calibrated for s in scores[:2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_scores_of_the_cpu(tmp_path: Path) -> None:
    clips = make_clips(tmp_path)[:2]
    on_cpu, on_gpu = (
        [Analyzer.load(device=device).analyze(Source(str(c)), Sampling(frames=32)).score for c in clips]
        for device in ("cpu", "cuda")
    )
    assert [s.score for s in on_gpu] == pytest.approx([s.score for s in on_cpu], abs=1e-4)
