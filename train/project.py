"""The folder of a training: its configuration, a folder a model, and at the end the model that was chosen.

config.json               what is trained on what, as resolved; another configuration is refused
seed-0/                   one model: last.pt, best.safetensors, history.json, summary.json, tensorboard/
plots/                    histories of all models: loss.png, auc.png, rate.png
model.safetensors         the best of them
ensemble.json             all of them, where there are several seeds; `unmask evaluate --model` takes it
summary.json              what was chosen, and why
evaluation/               on people whom none of them has seen; distill.json: a student beside its teachers
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from train.config import TrainConfig, runs
from train.finish import BEST, SUMMARY
from train.history import History, plot
from train.state import LAST
from train.validation import HIGHER_IS_BETTER
from train.worker import STOPPED, run_folder
from unmask.console import say
from unmask.differences import differences
from unmask.errors import StorageError, UsageError
from unmask.inputs import without_password
from unmask.storage import Store

__all__ = ["MODEL", "Project"]

MODEL, CONFIG, ENSEMBLE, EVALUATION = "model.safetensors", "config.json", "ensemble.json", "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One training.

    Args:
        store: Its folder.
        config: What is trained.
        data: On what.
    """

    store: Store
    config: TrainConfig
    data: tuple[str, ...]

    @classmethod
    def begin(cls, out: str, config: TrainConfig, data: tuple[str, ...]) -> "Project":
        """Begin a training, or take one up that was begun with the same configuration.

        Raises:
            UsageError: The folder holds another training.
            StorageError: Nothing can be written there.
        """
        store = Store(out)
        store.check_writable()
        wanted = {"config": config.to_json(), "data": [without_password(uri) for uri in data]}
        if _is_begun(store):
            # Of another recipe nearly everything differs: that is said first.
            before = _completed(_read(store, CONFIG))
            differing = sorted(differences(before, wanted), key=lambda said: "config.recipe" not in said)
            if differing:
                raise UsageError(
                    f"{store.shown} holds a training with another configuration ({'; '.join(differing[:4])}); choose "
                    "another --out, or the same options as before"
                )
        else:
            store.write(CONFIG, (json.dumps(wanted, indent=1) + "\n").encode())
        store.delete(STOPPED)
        return cls(store=store, config=config, data=data)

    def is_trained(self) -> bool:
        """Whether every model is."""
        return all(run_folder(self.store.uri, run.name).exists(SUMMARY) for run in runs(self.config))

    def conclude(self) -> str:
        """Choose the best model, draw the histories, and sum up. Returns where the model lies."""
        names = [run.name for run in runs(self.config)]
        summaries = {name: _read(run_folder(self.store.uri, name), SUMMARY) for name in names}
        select = self.config.loop.select
        value = {name: said["validation"][select] for name, said in summaries.items()}
        best = (max if HIGHER_IS_BETTER[select] else min)(names, key=lambda name: value[name])
        with TemporaryDirectory() as scratch, self.store.writing(MODEL, Path(scratch)) as path:
            path.write_bytes(run_folder(self.store.uri, best).read(BEST))
        histories = {n: History(run_folder(self.store.uri, n)).rows for n in names}
        shown = {name.replace("-plain", " without augmentation"): rows for name, rows in histories.items()}
        for name, image in plot(shown).items():
            self.store.write(f"plots/{name}.png", image)
        members = [name for name in names if not name.endswith("-plain")]
        if len(members) > 1:
            ensemble = {"members": [{"model": f"{name}/{BEST}", "weight": 1 / len(members)} for name in members]}
            self.store.write(ENSEMBLE, (json.dumps(ensemble, indent=1) + "\n").encode())
        chosen: dict[str, Any] = {"chosen": best, "selected_by": select, "models": summaries}
        self.store.write(SUMMARY, (json.dumps(chosen, indent=1) + "\n").encode())
        return f"{self.store.shown}/{MODEL}"

    def evaluate(self, device: str) -> None:
        """Evaluate the model, or the ensemble, on the videos of people whom it has not seen.

        Raises:
            UsageError: There are none; the model is there all the same.
        """
        if self.config.distill.teachers:
            self._compare(device)
        if self.config.data.draw == "selfblend":
            return self._evaluate_blends(device)
        from train.evaluate import show_evaluation, write_evaluation
        from train.findings import Examination

        name = ENSEMBLE if self.store.exists(ENSEMBLE) else MODEL
        with TemporaryDirectory() as scratch:
            model = self._local(name, Path(scratch))
            place = run_folder(self.store.uri, EVALUATION)
            how = Examination(depth=self.config.input.depth if self.config.model.head == "fusion" else None)
            show_evaluation(write_evaluation([str(model)], list(self.data), place, "unseen", device, how))
        return None

    def _compare(self, device: str) -> None:
        """Student and teachers beside each other."""
        from train.comparison import compare, show_comparison
        from unmask.devices import select_device

        with TemporaryDirectory() as scratch:
            model = str(self._local(MODEL, Path(scratch)))
            show_comparison(compare(model, self.config, self.data, self.store, select_device(device)))

    def _local(self, name: str, scratch: Path) -> Path:
        """A file of the training on this machine; of an ensemble, with its members."""
        if self.store.is_local:
            return self.store.local_path(name)
        members = [f"{run.name}/{BEST}" for run in runs(self.config)] if name == ENSEMBLE else []
        for each in (name, *members):
            (scratch / each).parent.mkdir(parents=True, exist_ok=True)
            (scratch / each).write_bytes(self.store.read(each))
        return scratch / name

    def _evaluate_blends(self, device: str) -> None:
        from train.heldout import heldout_blends
        from unmask.checkpoints import load
        from unmask.devices import select_device

        with TemporaryDirectory() as scratch:
            model, description = load(self._local(MODEL, Path(scratch)))
        found = heldout_blends(model, description, self.config, self.data, select_device(device))
        self.store.write(f"{EVALUATION}/selfblend.json", (json.dumps(found, indent=1) + "\n").encode())
        shown = {k: found["metrics"][k]["value"] for k in ("auc", "eer", "ece")}
        numbers = ", ".join(f"{k.upper()} {v:.4f}" for k, v in shown.items() if v is not None)
        say(f"{numbers}: {found['what']} ({found['faces']} {found['level']}s of {found['videos']} videos)")


def _completed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the fields that configurations have got since it was written, as they were meant then."""
    try:
        return {**record, "config": TrainConfig.from_json(record["config"]).to_json()}
    except (UsageError, KeyError):
        return record


def _is_begun(store: Store) -> bool:
    """Whether anything was trained there; else what was refused may be mended, and begun again."""
    made = {LAST, BEST, SUMMARY}
    return store.exists(CONFIG) and any(PurePosixPath(name).name in made for name in store.names(deep=True))


def _read(store: Store, name: str) -> dict[str, Any]:
    try:
        found = json.loads(store.read(name))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        remedy = "choose another --out" if name == CONFIG else "remove it, and the same command writes it again"
        raise StorageError(f"{store.shown}/{name} is damaged; {remedy}")
    return found
