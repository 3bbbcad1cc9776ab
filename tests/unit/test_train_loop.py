"""The loop in one process: it learns, it resumes exactly, it says what is wrong. Real crops, a real small network."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.products import BOX, Clip, faked, finished_run
from train.catalogue import Catalogue
from train.config import TrainConfig, overridden, runs
from train.context import Context
from train.finish import BEST, SUMMARY
from train.history import HISTORY
from train.loop import Training
from train.material import Material
from train.recipes import recipe
from train.state import LAST
from train.worker import STOPPED, Task, train_all
from unmask.calibration import Calibration
from unmask.checkpoints import describe, load
from unmask.errors import StorageError, TrainingError, UsageError
from unmask.provenance import overlap
from unmask.storage import Store

SMALL = ["model.backbone=mobilenetv3_small_050", "pretrained=false", "size_px=64", "batch=4", "loader_workers=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people, each with a real clip and a fake of it."""
    folder = tmp_path_factory.mktemp("crops") / "ten"
    frames = {k: [BOX] for k in range(0, 24, 6)}
    clips = []
    for n in range(10):
        about = {"identity": [f"person-{n}"], "mos": 1.0 + n / 3}
        clips.append(Clip(video=f"real/{n}", faces=frames, columns={"label": 0, **about}))
        fake = {"label": 1, "source": f"real/{n}", "method": "flip", **about}
        clips.append(Clip(video=f"fake/{n}", picture=faked, faces=frames, columns=fake))
    finished_run(Store(folder), clips, margin=1.7)
    return folder


def configured(name: str, *more: str) -> TrainConfig:
    return overridden(recipe(name), [*SMALL, *more])


def trained(config: TrainConfig, data: Path, out: Path, **options: Any) -> Training:
    (run, *_) = runs(config)
    catalogue = Catalogue.read([str(data)])
    material = Material.of(catalogue, run.config, seed=run.seed)
    training = Training(run, material, Store(out), Context(device=torch.device("cpu")), **options)
    training.fit()
    return training


def history(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / HISTORY).read_text())["epochs"]
    return rows


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("s") or k == "substituted"} for row in rows]


def test_it_learns_and_leaves_a_calibrated_checkpoint(data: Path, tmp_path: Path) -> None:
    config = configured(
        "celebdf-mobilenet", "epochs=5", "compare=false", "strategy=none", "lr=0.003", "unfreeze_after=1", "batch=8"
    )
    training = trained(config, data, tmp_path / "run")
    rows = history(tmp_path / "run")
    assert len(rows) == 5
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert rows[-1]["val_auc"] == 1.0
    model, description = load(tmp_path / "run" / BEST)
    assert description.trained
    assert description.calibration.fitted
    assert description.calibration != Calibration()
    assert description.preprocessing == training.material.preprocessing
    summary = json.loads((tmp_path / "run" / SUMMARY).read_text())
    assert summary["best_epoch"] == description.provenance["epoch"] == training.course.best_epoch
    assert not any(p.requires_grad and not torch.isfinite(p).all() for p in model.parameters())
    used = [training.material.catalogue.videos[n].about for n in training.material.splits.train]
    left = [training.material.catalogue.videos[n].about for n in training.material.splits.test]
    assert len(overlap(description.provenance, used).seen) == len(used)
    assert not overlap(description.provenance, left)


def test_a_checkpoint_tells_files_by_name_and_digest_and_never_their_folder(data: Path, tmp_path: Path) -> None:
    small = ("epochs=1", "compare=false", "strategy=none", "batch=8", "save_every_steps=1")
    trained(configured("celebdf-mobilenet", *small), data, tmp_path / "first")
    weights = tmp_path / "first" / BEST
    config = configured("celebdf-mobilenet", *small, f"weights={weights}")
    killed_at(config, data, tmp_path / "second", saves=1)
    trained(config, data, tmp_path / "second")  # goes on
    provenance = describe(tmp_path / "second" / BEST).provenance
    assert provenance["weights"] == f"file {BEST}, sha256 {hashlib.sha256(weights.read_bytes()).hexdigest()}"
    assert provenance["config"]["weights"] == BEST
    said = json.dumps(provenance)
    assert str(tmp_path) not in said
    assert str(data.parent) not in said
    assert TrainConfig.from_json(provenance["config"]).data == config.data


class Killed(Exception):
    """Stands for a process that dies between two steps."""


def killed_at(config: TrainConfig, data: Path, out: Path, saves: int) -> None:
    """Train until the state has been saved so often, then stop at once."""
    (run, *_) = runs(config)
    material = Material.of(Catalogue.read([str(data)]), run.config, seed=run.seed)
    training = Training(run, material, Store(out), Context(device=torch.device("cpu")))
    save, left = training.save, iter(range(saves - 1, -1, -1))

    def counted() -> None:
        save()
        if next(left) == 0:
            raise Killed

    training.save = counted  # type: ignore[method-assign]
    with pytest.raises(Killed):
        training.fit()


STORMY = (
    "selfblend", "epochs=2", "save_every_steps=2", "accumulate=2", "ema=0.9", "model.dropout=0.3", "lr=0.001",
    "drop_path=0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Path]:
    """A run that was never stopped, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    return trained(configured(*STORMY), data, out), out


# Within the first epoch, at its end, and within the second one.
@pytest.mark.parametrize("saves", [2, 7, 9])
def test_taken_up_again_it_comes_to_the_same_weights(
    data: Path, tmp_path: Path, whole: tuple[Training, Path], saves: int
) -> None:
    config, (undisturbed, out) = configured(*STORMY), whole
    killed_at(config, data, tmp_path, saves)
    state = torch.load(tmp_path / LAST, weights_only=True)["progress"]
    assert (state["epoch"], state["step"]) == {2: (0, 4), 7: (1, 0), 9: (1, 4)}[saves]
    torch.manual_seed(99)  # what another process would have
    halved = trained(config, data, tmp_path)
    for name, tensor in undisturbed.network.model.state_dict().items():
        assert torch.equal(tensor, halved.network.model.state_dict()[name]), name
    assert untimed(history(tmp_path)) == untimed(history(out))
    assert describe(tmp_path / BEST).sha256 == describe(out / BEST).sha256


def test_accumulated_gradients_are_those_of_the_whole_batch(data: Path, tmp_path: Path) -> None:
    common = ("epochs=1", "compare=false", "strategy=none", "dropout=0", "optim.name=sgd", "freeze=backbone",
              "unfreeze_after=none", "pos_weight=none", "lr=0.1")  # fmt: skip
    whole = trained(configured("celebdf-mobilenet", *common, "batch=8"), data, tmp_path / "whole")
    parts = trained(configured("celebdf-mobilenet", *common, "batch=4", "accumulate=2"), data, tmp_path / "parts")
    assert whole.progress.updates == parts.progress.updates > 3
    for name, tensor in whole.network.model.head.state_dict().items():
        torch.testing.assert_close(tensor, parts.network.model.head.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_clips_with_opinion_scores(data: Path, tmp_path: Path) -> None:
    config = configured("dfgc-convnext", "epochs=2", "checkpoint_activations=false", "lr=0.001", "accumulate=2")
    trained(config, data, tmp_path)
    rows = history(tmp_path)
    assert rows[-1]["val_rmse"] < 3.0
    assert describe(tmp_path / BEST).config.task == "mos"
    assert describe(tmp_path / BEST).provenance["mos_by_method"].keys() == {"", "flip"}


def test_layer_norms_alone_are_tuned(data: Path, tmp_path: Path) -> None:
    config = configured("ln-tune", "model.backbone=test_vit", "epochs=1", "align=false", "size_px=160",
                        "loss.alignment=0.1", "loss.uniformity=0.1")  # fmt: skip
    (run,) = runs(config)
    material = Material.of(Catalogue.read([str(data)]), config, seed=0)
    before = Training(run, material, Store(tmp_path / "a"), Context(device=torch.device("cpu")))
    start = {k: v.clone() for k, v in before.network.model.backbone.state_dict().items()}
    before.fit()
    changed = {k for k, v in before.network.model.backbone.state_dict().items() if not torch.equal(v, start[k])}
    assert changed
    assert all("norm" in name for name in changed), changed


def test_a_frozen_backbone_stands_still_until_it_is_its_turn(data: Path, tmp_path: Path) -> None:
    kept = configured("celebdf-mobilenet", "epochs=1", "compare=false", "unfreeze_after=1")
    config = configured("celebdf-mobilenet", "epochs=2", "compare=false", "unfreeze_after=1")
    first, both = (trained(c, data, tmp_path / n) for c, n in ((kept, "first"), (config, "both")))
    (run, *_) = runs(kept)
    material = Material.of(Catalogue.read([str(data)]), kept, seed=0)
    fresh = Training(run, material, Store(tmp_path / "fresh"), Context(device=torch.device("cpu")))
    stem = "backbone.conv_stem.weight"
    weights = [t.network.model.state_dict()[stem] for t in (fresh, first, both)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_loss_that_is_not_finite_stops_with_the_samples_named(data: Path, tmp_path: Path) -> None:
    config = configured("celebdf-mobilenet", "epochs=1", "compare=false", "strategy=none")
    (run, *_) = runs(config)
    material = Material.of(Catalogue.read([str(data)]), config, seed=0)
    training = Training(run, material, Store(tmp_path), Context(device=torch.device("cpu")))
    with torch.no_grad():
        training.network.model.head.fc.bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match=r"not finite in epoch 1, batch 1, with ten/\w+/\d frame \d+ face 0"):
        training.fit()
    assert not (tmp_path / LAST).exists()


def test_a_corrupt_crop_is_replaced_and_counted(data: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "ten"
    shutil.copytree(data, broken)
    catalogue = Catalogue.read([str(broken)])
    config = configured("celebdf-mobilenet", "epochs=1", "compare=false", "strategy=none")
    material = Material.of(catalogue, config, seed=0)
    victim = int(material.train.pool.faces[5][0])
    place = catalogue.place_of(victim)
    store, name = catalogue.files[place.file]
    with store.local_path(name).open("r+b") as file:
        file.seek(place.offset)
        file.write(b"\0" * place.size)
    with pytest.raises(StorageError, match="damaged"):
        material.train.reader.image(victim)
    trained(config, broken, tmp_path / "out")
    (row,) = history(tmp_path / "out")
    assert row["substituted"] == 1
    assert row["samples"] == -(-len(material.train.pool) // 4) * 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["fractions=[1,0,0]"], "the split val is empty"),
        (["min_face_px=500"], "no usable face"),
        (["margin=2.5"], "preprocess with --margin 2.50"),
        (["cached_features=true", "strategy=none", "unfreeze_after=none", "compare=false"], "keeps no features"),
        (["precision=fp16"], "needs a GPU"),
        (["checkpoint_activations=true", "backbone=vgg11", "head=frame"], "cannot recompute"),
        (["backbone=no_such_net", "head=frame"], "no_such_net"),
        (["select=auc", "split=official"], "no.* official split"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(
    data: Path, tmp_path: Path, settings: list[str], says: str
) -> None:
    from unmask.errors import UnmaskError

    with pytest.raises(UnmaskError, match=says) as refused:
        trained(configured("celebdf-mobilenet", *settings), data, tmp_path)
    assert "\n" not in refused.value.message


def test_one_class_is_refused(tmp_path: Path) -> None:
    finished_run(Store(tmp_path / "one"), [Clip(video=str(n), columns={"label": 0}) for n in range(6)])
    with pytest.raises(UsageError, match=r"real videos only.*selfblend"):
        trained(configured("celebdf-mobilenet"), tmp_path / "one", tmp_path / "out")


def test_people_on_both_sides_are_refused(tmp_path: Path) -> None:
    clips = [
        Clip(video=f"{label}{n}", columns={"label": label, "identity": ["anna"], "split": split})
        for n, split in enumerate(("train", "val"))
        for label in (0, 1)
    ]
    store = Store(tmp_path / "leaky")
    finished_run(store, clips)
    with pytest.raises(UsageError, match=r"leaks: the person 'leaky/anna'"):
        trained(configured("celebdf-mobilenet"), tmp_path / "leaky", tmp_path / "out")


@pytest.fixture
def task(data: Path, tmp_path: Path) -> Task:
    config = configured("celebdf-mobilenet", "epochs=1", "strategy=none", "compare=false")
    return Task(config=config, data=(str(data),), out=str(tmp_path / "out"))


def test_memory_that_is_used_up_is_said_with_the_remedy(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Training) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(Training, "fit", full)
    with pytest.raises(TrainingError, match=r"--set loop\.batch=2 --set loop\.accumulate=2"):
        train_all(task, Context(device=torch.device("cpu")), print)
    said = json.loads(Store(task.out).read(STOPPED))
    assert "used up" in said["message"]


def test_models_that_are_trained_are_not_trained_again(task: Task) -> None:
    said: list[str] = []
    train_all(task, Context(device=torch.device("cpu")), said.append)
    assert any("epoch 1 of 1" in line for line in said)
    train_all(task, Context(device=torch.device("cpu")), said.append)
    assert sum("epoch 1 of 1" in line for line in said) == 1
