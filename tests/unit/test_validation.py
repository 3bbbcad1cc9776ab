"""What validation looks at, and what it makes of the outputs; every share of the workers gives the same numbers."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.products import BOX, Clip, finished_run
from tests.workers import in_two_processes
from train.augment import SelfBlend
from train.catalogue import Catalogue
from train.clips import Samples
from train.config import TrainConfig, overridden
from train.context import Context
from train.crops import CropReader
from train.material import pool_of
from train.network import Network
from train.precision import Precision
from train.recipes import recipe
from train.validation import HIGHER_IS_BETTER, Validated, keys_of, validate
from unmask.errors import TrainingError
from unmask.models import build
from unmask.storage import Store

CPU = torch.device("cpu")
TINY = ["backbone=test_efficientnet", "size_px=32", "margin=1.3", "batch=2"]
FRAMES = overridden(recipe("celebdf-mobilenet"), [*TINY, "head=frame"])
CLIPS = overridden(FRAMES, ["head=temporal", "window=2", "clips_per_video_tested=3"])
SCORES = overridden(recipe("dfgc-convnext"), [*TINY, "window=2", "clips_per_video_tested=3"])
BLENDS = overridden(recipe("selfblend"), [*TINY, "pyramid=false", "loss.mask=0"])


def catalogued(folder: Path, videos: int = 5) -> Catalogue:
    clips = [
        Clip(video=f"v{n}", faces={f: [BOX] for f in range(n, n + 5, 2)}, columns={"label": n % 2, "mos": 1.0 + n})
        for n in range(videos)
    ]
    finished_run(Store(folder / "run"), clips)
    return Catalogue.read([str(folder / "run")])


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return catalogued(tmp_path_factory.mktemp("faces"))


def samples_of(catalogue: Catalogue, config: TrainConfig) -> Samples:
    blend = SelfBlend() if config.data.draw == "selfblend" else None
    videos = [n for n in range(len(catalogue.videos)) if blend is None or not catalogue.videos[n].about.label]
    pool = pool_of(catalogue, videos, config, "val")
    preprocessing = config.input.preprocessing(config.model.backbone)
    return Samples(catalogue, CropReader(catalogue), pool, config, preprocessing, blend=blend)


def network_of(samples: Samples) -> Network:
    return Network(build(samples.config.model), samples.preprocessing)


def validated(samples: Samples, context: Context | None = None) -> Validated:
    return validate(
        network_of(samples), samples, Precision(CPU, torch.float32), context or Context(device=CPU), loader_workers=0
    )


def test_every_frame_is_looked_at_and_some_clips_of_every_video(catalogue: Catalogue) -> None:
    frames = keys_of(samples_of(catalogue, FRAMES))
    assert [(key.epoch, key.position, key.unit) for key in frames] == [(-1, n, n) for n in range(15)]
    clips = keys_of(samples_of(catalogue, CLIPS))
    assert [key.unit for key in clips] == [n for n in range(5) for _ in range(3)]
    assert len({key.position for key in clips}) == 15
    pairs = keys_of(samples_of(catalogue, BLENDS))
    assert [(key.unit, key.blend) for key in pairs] == [(n, blend) for n in range(9) for blend in (False, True)]


@pytest.mark.parametrize("config", [FRAMES, CLIPS, BLENDS], ids=["frames", "clips", "blends"])
def test_the_metrics_are_those_of_its_outputs(catalogue: Catalogue, config: TrainConfig) -> None:
    samples = samples_of(catalogue, config)
    found = validated(samples)
    network, loss = network_of(samples).eval(), []
    scores: dict[tuple[int, int], list[float]] = {}
    for key in keys_of(samples):
        with torch.inference_mode():
            logit = network.logits(samples.batch([key]), CPU).item()
        label = 1 if key.blend else int(samples.pool.label_U[key.unit])
        probability = 1 / (1 + math.exp(-logit))
        loss.append(-math.log(probability if label else 1 - probability))
        scores.setdefault((label, int(samples.pool.video_U[key.unit])), []).append(probability)
    assert found.metrics["loss"] == pytest.approx(np.mean(loss), abs=1e-5)
    reals, fakes = ([np.mean(s) for (label, _), s in scores.items() if label == wanted] for wanted in (0, 1))
    pairs = [(real, fake) for real in reals for fake in fakes]
    assert found.metrics["auc"] == pytest.approx(np.mean([fake > real for real, fake in pairs]))
    fake_loss, real_loss = np.mean(-np.log(fakes)), np.mean(-np.log1p(-np.array(reals)))
    mean = np.average([fake_loss, real_loss], weights=[len(fakes), len(reals)])
    assert found.metrics["log_loss"] == pytest.approx(mean, abs=1e-5)
    assert found.metrics["weighted_log_loss"] == pytest.approx((1.4 * fake_loss + real_loss) / 2, abs=1e-5)
    values_G, labels_G = found.by_group()
    assert sorted(values_G[labels_G == 1]) == pytest.approx(sorted(fakes), abs=1e-5)
    assert set(found.metrics) >= {"auc", "log_loss", "weighted_log_loss", "loss", "frame_auc", "balanced_accuracy"}


def test_opinion_scores_are_the_mean_over_the_clips_of_a_video(catalogue: Catalogue) -> None:
    samples = samples_of(catalogue, SCORES)
    found = validated(samples)
    network = network_of(samples).eval()
    with torch.inference_mode():
        outputs = [network.logits(samples.batch([key]), CPU).item() for key in keys_of(samples)]
    means, wanted = np.reshape(outputs, (5, 3)).mean(1), np.arange(5) + 1.0
    assert found.metrics["rmse"] == pytest.approx(np.sqrt(np.mean((means - wanted) ** 2)), abs=1e-5)
    assert found.metrics["plcc"] == pytest.approx(np.corrcoef(means, wanted)[0, 1], abs=1e-4)
    assert found.metrics["loss"] == found.metrics["rmse"]
    assert found.values_K == pytest.approx(outputs, abs=1e-5)


def test_whatever_picks_an_epoch_is_computed(catalogue: Catalogue) -> None:
    computed = set(validated(samples_of(catalogue, FRAMES)).metrics) | set(
        validated(samples_of(catalogue, SCORES)).metrics
    )
    assert set(HIGHER_IS_BETTER) <= computed
    assert {name for name, higher in HIGHER_IS_BETTER.items() if higher} == {"auc", "plcc"}


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_put_back(catalogue: Catalogue, training: bool) -> None:
    samples = samples_of(catalogue, FRAMES)
    network = network_of(samples).train(training)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    validate(network, samples, Precision(CPU, torch.float32), Context(device=CPU), loader_workers=0)
    assert network.training == network.model.backbone.training == training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("videos", [5, 1])
def test_workers_come_to_the_same_numbers(tmp_path: Path, videos: int) -> None:
    samples = samples_of(
        catalogued(tmp_path, videos), CLIPS if videos > 1 else overridden(CLIPS, ["clips_per_video_tested=1"])
    )
    alone = validated(samples)

    def work(context: Context) -> None:
        shared = validated(samples, context)
        np.testing.assert_allclose(shared.logits_K, alone.logits_K, atol=1e-5)
        np.testing.assert_array_equal(shared.labels_K, alone.labels_K)
        np.testing.assert_array_equal(shared.groups_K, alone.groups_K)

    in_two_processes(tmp_path, work)


def damage(catalogue: Catalogue, faces: Sequence[int]) -> None:
    for face in faces:
        place = catalogue.place_of(face)
        store, name = catalogue.files[place.file]
        with store.local_path(name).open("r+b") as file:
            file.seek(place.offset)
            file.write(b"\0" * place.size)


def test_what_stands_in_for_a_damaged_crop_counts_as_what_it_is(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path)
    damage(catalogue, [0, 1, 2])  # all of the first video
    detected = validated(samples_of(catalogue, FRAMES))
    assert detected.labels_K.tolist()[:3] == [0.0, 0.0, 0.0]
    assert 0 not in (detected.groups_K // 2)
    # No other video has its opinion score: what stands in is compared with its own.
    samples = samples_of(catalogue, SCORES)
    scored = validated(samples)
    network = network_of(samples).eval()
    with torch.inference_mode():
        for key, label, group in zip(keys_of(samples), scored.labels_K, scored.groups_K, strict=True):
            (face,) = samples.batch([key]).faces
            video = int(catalogue.video_N[face])
            assert (label, group) == (1.0 + video, 2 * video)
            assert video != 0
    assert network.training is False


def test_outputs_that_are_not_finite_are_said(catalogue: Catalogue) -> None:
    samples = samples_of(catalogue, FRAMES)
    network = network_of(samples)
    with torch.no_grad():
        network.model.head.fc.bias.fill_(float("inf"))  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match="outputs in validation are not finite"):
        validate(network, samples, Precision(CPU, torch.float32), Context(device=CPU), loader_workers=0)


def test_one_class_leaves_out_what_it_does_not_define(catalogue: Catalogue) -> None:
    samples = samples_of(catalogue, FRAMES)
    pool = pool_of(catalogue, [0, 2], FRAMES, "val")
    samples.pool = pool
    assert set(validated(samples).metrics) == {"loss", "log_loss"}
