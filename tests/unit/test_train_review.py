"""What a review of training found, and what holds since."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from tests.products import Clip, faked, finished_run
from train.catalogue import Catalogue
from train.clips import batches
from train.config import LoopConfig, TrainConfig, overridden, runs
from train.context import Context
from train.finish import SUMMARY
from train.history import HISTORY
from train.loop import Training
from train.material import Material
from train.network import prepared
from train.project import Project
from train.recipes import recipe
from train.splits import splits_of
from train.state import LAST
from train.worker import Task, train_all
from unmask.errors import StorageError, UsageError
from unmask.models import ModelConfig, build
from unmask.storage import Store

CPU = torch.device("cpu")
SMALL = ["model.backbone=mobilenetv3_small_050", "pretrained=false", "size_px=64", "batch=4", "loader_workers=0"]


def people(folder: Path, count: int = 10, *, margin: float = 1.7, **columns: Any) -> Path:
    """People, each with a real clip and a fake of it."""
    clips = []
    for n in range(count):
        about = {"identity": [f"{folder.name}-{n}"], **columns}
        real, fake = f"{folder.name}-r{n}", f"{folder.name}-f{n}"
        clips.append(Clip(video=real, columns={"label": 0, **about}))
        clips.append(Clip(video=fake, picture=faked, columns={"label": 1, "source": real, **about}))
    finished_run(Store(folder), clips, margin=margin)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people(tmp_path_factory.mktemp("review") / "ten")


def configured(*settings: str, name: str = "celebdf-mobilenet") -> TrainConfig:
    more = ["compare=false", "strategy=none"] if name == "celebdf-mobilenet" else []
    return overridden(recipe(name), [*SMALL, *more, *settings])


def prepared_training(config: TrainConfig, data: Path, out: Path, context: Context | None = None) -> Training:
    (run, *_) = runs(config)
    material = Material.of(Catalogue.read([str(data)]), run.config, seed=run.seed)
    return Training(run, material, Store(out), context or Context(device=CPU))


def test_shared_batch_norm_keeps_the_activations() -> None:
    """timm's BatchNorms of EfficientNets and MobileNets apply the activation too; PyTorch's conversion drops it."""

    class Gpu:
        """A device that is called so; the model stays where it is."""

        type = "cuda"

    model = build(ModelConfig(backbone="mobilenetv3_small_050"), seed=0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model.features(images)
    moved = model.to
    model.to = lambda *_, **__: moved("cpu")  # type: ignore[method-assign]
    shared = prepared(model, LoopConfig(sync_bn=True), Gpu())  # type: ignore[arg-type]
    assert any(isinstance(m, nn.SyncBatchNorm) for m in shared.modules())
    with torch.inference_mode():
        torch.testing.assert_close(shared.features(images), before)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["loader_workers=-1"], "loader_workers is 0 or more"),
        (["weight_decay=NaN"], "weight_decay is a number"),
        (["fractions=[NaN,0.5,0.5]"], "fractions is a list"),
        (["seeds=[99999999999999999999]"], "below 2"),
        (["power=-1"], "power are 0 or more"),
        (["head=temporal", "alignment=0.1"], "takes clips"),
        (["no_such_field=1"], "--recipe NAME --show"),
    ],
)
def test_settings_that_cannot_be_meant(settings: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        configured(*settings)


def test_a_loader_process_says_what_is_wrong_in_a_sentence(tmp_path: Path) -> None:
    folder = people(tmp_path / "broken", 6)
    material = Material.of(Catalogue.read([str(folder)]), configured(), seed=0)
    for tar in folder.glob("crops/*.tar"):
        tar.write_bytes(b"\0" * tar.stat().st_size)
    from train.validation import keys_of

    with pytest.raises(UsageError, match="cannot be read") as refused:
        list(batches(material.val, [keys_of(material.val)], workers=1))
    assert "\n" not in refused.value.message


def test_every_dataset_must_cover_the_margin_by_itself(tmp_path: Path) -> None:
    """A tenth of all faces may be cut short, but not all faces of a small dataset."""
    wide, tight = people(tmp_path / "wide", 24), people(tmp_path / "tight", 1, margin=1.0)
    with pytest.raises(UsageError, match=r"tight show about 1\.\d\d times"):
        Material.of(Catalogue.read([str(wide), str(tight)]), configured("margin=1.5"), seed=0)


def test_a_dataset_without_splits_is_dealt_out_beside_one_that_has_them(tmp_path: Path) -> None:
    clips = [
        Clip(video=f"{label}{n}", columns={"label": label, "identity": [f"p{n}"], "split": split})
        for n, split in enumerate(["train"] * 4 + ["val", "test"])
        for label in (0, 1)
    ]
    finished_run(Store(tmp_path / "official"), clips)
    other = people(tmp_path / "other")
    catalogue = Catalogue.read([str(tmp_path / "official"), str(other)])
    splits = splits_of(catalogue, configured(), 0)
    counts = {
        name: [sum(catalogue.videos[n].dataset == each for n in getattr(splits, name)) for each in catalogue.stores]
        for name in ("train", "val", "test")
    }
    assert counts == {"train": [8, 14], "val": [2, 2], "test": [2, 4]}
    assert splits.how == "official splits, people of other dealt out"
    with pytest.raises(UsageError, match="other has no official split"):
        splits_of(catalogue, configured("split=official"), 0)


def test_passwords_of_buckets_are_not_written_down(tmp_path: Path) -> None:
    secret = ("s3://KEY:SECRET@bucket/faces",)
    Project.begin(str(tmp_path), configured(), secret)
    assert "SECRET" not in (tmp_path / "config.json").read_text()
    Project.begin(str(tmp_path), configured(), secret)  # taken up again


def test_a_damaged_summary_is_said_in_a_sentence(tmp_path: Path) -> None:
    project = Project.begin(str(tmp_path), configured(), ("data",))
    Store(tmp_path).write(f"seed-0/{SUMMARY}", b'{"epochs": 1')
    with pytest.raises(StorageError, match=r"seed-0/summary\.json is damaged; remove it"):
        project.conclude()


def test_a_run_whose_history_was_removed_ends_well(data: Path, tmp_path: Path) -> None:
    training = prepared_training(configured("epochs=1"), data, tmp_path)
    training.fit()
    (tmp_path / HISTORY).unlink()
    (tmp_path / SUMMARY).unlink()
    prepared_training(configured("epochs=1"), data, tmp_path).fit()
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert (summary["best_epoch"], summary["epochs"]) == (0, 1)
    assert summary["validation"] == {"auc": training.course.best}


def test_a_model_that_cannot_be_compiled_is_said_in_a_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fails(_: Training) -> None:
        raise TorchDynamoException("no compiler\nand a trace")

    monkeypatch.setattr(Training, "fit", fails)
    task = Task(config=configured("epochs=1"), data=(str(data),), out=str(tmp_path))
    with pytest.raises(UsageError, match=r"\(no compiler\): set loop\.compile=false"):
        train_all(task, Context(device=CPU), lambda _: None)


class Killed(Exception):
    """Stands for workers that die after the state was saved."""


def _worker(rank: int, place: str, data: str, jobs: list[tuple[str, int]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    config = configured("epochs=1", "ema=0.9", "save_every_steps=2", "lr=0.01", name="selfblend")
    for out, saves in jobs:
        training = prepared_training(config, Path(data), Path(out), Context(device=CPU, rank=rank, workers=2))
        save, left = training.save, iter(range(saves - 1, -100, -1))

        def counted(save: Any = save, left: Any = left) -> None:
            save()
            if next(left) == 0:
                raise Killed

        training.save = counted  # type: ignore[method-assign]
        try:
            training.fit()
        except Killed:
            torch.manual_seed(99)
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_an_average_are_taken_up_exactly(data: Path, tmp_path: Path) -> None:
    """The average of BatchNorm's statistics is each worker's own: the first one's must be validated and kept."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    jobs = [(str(tmp_path / "whole"), 0), (str(tmp_path / "halved"), 1), (str(tmp_path / "halved"), 0)]
    spawn(_worker, (str(tmp_path), str(data), jobs), nprocs=2)  # type: ignore[no-untyped-call]
    rows, states = [], []
    for name in ("whole", "halved"):
        (row,) = json.loads((tmp_path / name / HISTORY).read_text())["epochs"]
        rows.append({k: v for k, v in row.items() if k not in ("seconds", "samples_per_s", "train_loss")})
        states.append(torch.load(tmp_path / name / LAST, weights_only=True))
    assert rows[0] == rows[1]
    for part in ("model", "average"):
        assert all(torch.equal(v, states[1][part][k]) for k, v in states[0][part].items())
