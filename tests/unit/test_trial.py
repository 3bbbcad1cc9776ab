"""Models side by side on clips of held-out people: the same clips for all, and numbers that can be computed by hand."""

import numpy as np
import pytest
import torch

from tests.products import BOX, Clip, finished_run
from train.augment import BLENDS, strategy
from train.catalogue import Catalogue
from train.clips import Samples
from train.config import overridden
from train.crops import CropReader
from train.material import pool_of
from train.recipes import recipe
from train.samplers import Key
from train.trial import CONDITIONS, Model, Trial, perturbations
from unmask.checkpoints import Description
from unmask.models import build
from unmask.storage import Store
from unmask.transforms import normalised

SETTINGS = ["backbone=test_efficientnet", "pyramid=false", "size_px=48", "window=3", "pretrained=false"]
CLIPS = overridden(recipe("selfblend-clips"), SETTINGS)
CPU = torch.device("cpu")


def model(head: str) -> Model:
    config = overridden(CLIPS, [f"head={head}"]).model
    preprocessing = CLIPS.input.preprocessing(config.backbone)
    built = build(config, seed=1)
    return built, Description(name=head, version="1", config=config, preprocessing=preprocessing, trained=True)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("trial") / "faces"
    clips = [Clip(video=f"v{n}", faces={0: [BOX]}, columns={"label": 0}) for n in range(3)]
    finished_run(Store(folder), clips, margin=1.5)
    return Catalogue.read([str(folder)])


def test_every_model_sees_the_same_clips_and_gives_what_it_gives_alone(catalogue: Catalogue) -> None:
    models = {"clips": model("temporal"), "frames": model("frame")}
    outcome = Trial(catalogue, [0, 1, 2], CLIPS, models, CPU).run(CONDITIONS["shared"], draws=2, seed=4)
    assert outcome.labels_K.tolist() == [0, 1] * 6
    assert outcome.people_K.tolist() == [0, 0, 1, 1, 2, 2] * 2
    preprocessing = models["clips"][1].preprocessing
    samples = Samples(
        catalogue, CropReader(catalogue), pool_of(catalogue, [0, 1, 2], CLIPS, "test"), CLIPS, preprocessing,
        strategy=strategy("video", 48), blend=BLENDS["video"], seed=4,
    )  # fmt: skip
    for n in (0, 1, 5, 9):
        batch = samples.batch([Key(-1, n, n // 2 % 3, n % 2 == 1)])
        frames_T3HW = normalised(batch.pixels[0, batch.valid_BT[0]], preprocessing)
        with torch.inference_mode():
            temporal, _ = models["clips"]
            features_TD = temporal.features(frames_T3HW)
            logit = temporal.clip_logits(features_TD[None], torch.ones(1, len(features_TD), dtype=torch.bool)).item()
            frame, _ = models["frames"]
            mean = torch.sigmoid(frame.frame_logits(frame.features(frames_T3HW)).double()).mean().item()
        assert outcome.logits["clips"][n] == pytest.approx(logit, abs=1e-4)
        assert 1 / (1 + np.exp(-outcome.logits["frames"][n])) == pytest.approx(mean, abs=1e-5)


def test_draws_and_seeds_give_other_clips(catalogue: Catalogue) -> None:
    trial = Trial(catalogue, [0, 1, 2], CLIPS, {"frames": model("frame")}, CPU)
    first, again, other = (trial.run(CONDITIONS["clean"], seed=s).logits["frames"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    two = trial.run(CONDITIONS["clean"], draws=2, people=2, seed=1).logits["frames"]
    assert len(two) == 8
    np.testing.assert_allclose(two[:4], first[:4], atol=1e-5)
    assert (two[4:] != two[:4]).all()


def test_a_clip_is_changed_before_any_model_sees_it(catalogue: Catalogue) -> None:
    trial = Trial(catalogue, [0, 1], CLIPS, {"clips": model("temporal"), "frames": model("frame")}, CPU)
    grey = trial.run(CONDITIONS["clean"], change=lambda frames, _: [np.full_like(f, 128) for f in frames])
    # Of a grey clip nothing is left but its length.
    assert np.ptp(grey.logits["frames"]) < 1e-6
    assert np.ptp(trial.run(CONDITIONS["clean"]).logits["frames"]) > 1e-6


def test_all_perturbations_are_gone_through(catalogue: Catalogue) -> None:
    trial = Trial(catalogue, [0], CLIPS, {"frames": model("frame")}, CPU)
    found = [(name, value) for name, _, value, _ in perturbations(trial, people=1)]
    assert len(found) == len(set(found)) == 8 * 5 + 4
    assert ("crf", 23) in found
