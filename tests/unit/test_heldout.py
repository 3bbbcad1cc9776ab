"""Self-blends of people who were left for the test: who they are, how many faces, and numbers that can be repeated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.products import BOX, Clip, finished_run
from train.augment import BLENDS
from train.catalogue import Catalogue
from train.clips import Samples
from train.config import TrainConfig, overridden
from train.crops import CropReader
from train.heldout import heldout_blends
from train.material import pool_of
from train.recipes import recipe
from train.samplers import Key
from train.splits import splits_of
from unmask.calibration import Calibration
from unmask.checkpoints import Description
from unmask.errors import UsageError
from unmask.models import ForgeryModel, build
from unmask.storage import Store

CPU = torch.device("cpu")
CONFIG = overridden(
    recipe("selfblend"),
    ["backbone=test_efficientnet", "pyramid=false", "loss.mask=0", "size_px=48", "batch=4", "fractions=[0.5,0.2,0.3]"],
)
CALIBRATION = Calibration(temperature=2.0, fitted=True, source="a test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten people, two frames each."""
    folder = tmp_path_factory.mktemp("faces") / "faces"
    clips = [Clip(video=f"v{n}", faces={n: [BOX], n + 20: [BOX]}, columns={"label": 0, "identity": [f"p{n}"]})
             for n in range(10)]  # fmt: skip
    finished_run(Store(folder), clips, margin=1.5)
    return str(folder)


def model_and(config: TrainConfig = CONFIG) -> tuple[ForgeryModel, Description]:
    model = build(config.model)
    preprocessing = config.input.preprocessing(config.model.backbone)
    description = Description(
        name="m", version="1", config=config.model, preprocessing=preprocessing, calibration=CALIBRATION, trained=True
    )
    return model, description


def judged(data: str, config: TrainConfig = CONFIG) -> dict[str, Any]:
    return heldout_blends(*model_and(config), config, [data], CPU)


def test_the_faces_are_those_of_people_who_were_left(data: str) -> None:
    found = judged(data)
    assert (found["videos"], found["faces"], found["level"]) == (3, 12, "frame")
    assert found == judged(data)  # again, the same ones
    for name in ("auc", "eer", "log_loss", "ece", "brier"):
        measure = found["metrics"][name]
        assert measure["low"] <= measure["value"] <= measure["high"]


def test_the_numbers_are_those_of_its_own_outputs(data: str) -> None:
    """Computed from the crops by hand: the same blends, each face and its fake, through the model, calibrated."""
    model, description = model_and()
    catalogue = Catalogue.read([data])
    left = splits_of(catalogue, CONFIG, 0).test
    pool = pool_of(catalogue, left, CONFIG, "test")
    samples = Samples(
        catalogue,
        CropReader(catalogue),
        pool,
        CONFIG,
        description.preprocessing,
        blend=BLENDS[CONFIG.augment.blends],
        seed=1,
    )
    probabilities = []
    for n in range(12):
        pixels = samples.batch([Key(-1, n, n // 2, n % 2 == 1)]).pixels[:, 0].float() / 255
        mean, std = (torch.tensor(v) for v in (description.preprocessing.mean, description.preprocessing.std))
        with torch.inference_mode():
            logit = model.frame_logits(model.features(((pixels - mean) / std).permute(0, 3, 1, 2))).item()
        probabilities.append(1 / (1 + np.exp(-logit / 2.0)))
    reals, fakes = np.array(probabilities[::2]), np.array(probabilities[1::2])
    wins = (fakes[:, None] > reals).mean() + 0.5 * (fakes[:, None] == reals).mean()
    loss = -np.mean(np.log([*(1 - reals), *fakes]))
    found = judged(data)
    metrics = found["metrics"]
    assert metrics == found["by_blends"][CONFIG.augment.blends]
    assert set(found["by_blends"]) == set(BLENDS)
    assert metrics["auc"]["value"] == pytest.approx(wins, abs=1e-9)
    assert metrics["log_loss"]["value"] == pytest.approx(loss, abs=1e-5)


def test_clips_are_judged_as_clips(data: str) -> None:
    found = judged(data, overridden(CONFIG, ["head=temporal", "window=2"]))
    assert (found["level"], found["videos"], found["faces"]) == ("clip", 3, 6)


def test_where_nobody_was_left_it_is_said(data: str) -> None:
    with pytest.raises(
        UsageError, match=r"nobody was left for the test: set data\.fractions with a third share above 0"
    ):
        judged(data, overridden(CONFIG, ["fractions=[0.7,0.3,0]"]))


def test_the_seed_of_training_does_not_matter(data: str, tmp_path: Path) -> None:
    """Another model of an ensemble leaves the same people, and is tested on the same fakes."""
    assert judged(data, overridden(CONFIG, ["seeds=[3]"])) == judged(data)
