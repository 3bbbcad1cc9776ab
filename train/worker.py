"""What every process of a training run does, with Ray and without: each of the models, one after the other."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from train.catalogue import Catalogue
from train.config import TrainConfig, runs
from train.context import Context
from train.finish import SUMMARY
from train.loop import Training
from train.material import Material
from unmask.errors import TrainingError, UnmaskError, UsageError
from unmask.storage import Store
from unmask.workers import cores

__all__ = ["STOPPED", "Task", "run_folder", "train_all"]

STOPPED = "stopped.json"
"""Why training cannot go on: written by the worker that found out, so that no other tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the workers are told.

    Args:
        config: What to train.
        data: Outputs of `unmask preprocess`.
        out: Folder or URL that all workers reach.
        cache: A local folder for crops that lie in buckets.
    """

    config: TrainConfig
    data: tuple[str, ...]
    out: str
    cache: str | None = None


def run_folder(out: str, name: str) -> Store:
    """The folder of one model."""
    return Store(Store(out).uri_of(name))


def train_all(task: Task, context: Context, say: Callable[[str], None]) -> None:
    """Train every model of a configuration that is not trained yet.

    Args:
        task: What to do.
        context: This worker's.
        say: Tells a person how it goes.

    Raises:
        UnmaskError: It cannot go on; also written to `STOPPED` in the output.
    """
    out = Store(task.out)
    with _explained(out, task.config, context):
        todo = [run for run in runs(task.config) if not run_folder(task.out, run.name).exists(SUMMARY)]
        catalogue = Catalogue.read(task.data) if todo else None
        for run in todo:
            assert catalogue is not None
            cache = Path(task.cache) if task.cache else None
            material = Material.of(catalogue, run.config, seed=run.seed, cache=cache, context=context)
            if run is todo[0] and context.leads:
                say(material.splits.describe())
            for note in material.notes if context.leads else ():
                say(note)
            folder = run_folder(task.out, run.name)
            Training(run, material, folder, context, say=say, loader_workers=_loaders(run.config, context)).fit()


@contextlib.contextmanager
def _explained(out: Store, config: TrainConfig, context: Context) -> Iterator[None]:
    """Turn what memory runs out of into a sentence, and write down why training stops."""
    try:
        try:
            yield
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            raise _memory(config, context) from error
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                cause = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)[:200]
                raise UsageError(f"the model cannot be compiled here ({cause}): set loop.compile=false") from error
            if "can't allocate memory" not in str(error):
                raise
            raise _memory(config, context) from error
    except UnmaskError as error:
        out.write(STOPPED, json.dumps({"reason": error.reason, "message": error.message}).encode())
        raise


def _memory(config: TrainConfig, context: Context) -> TrainingError:
    loop = config.loop
    smaller = f"loop.batch={max(loop.batch // 2, 1)} loop.accumulate={loop.accumulate * 2}"
    return TrainingError(
        f"the memory of {context.device} is used up with {loop.batch} samples of {config.model.backbone} in a batch: "
        f"--set {smaller.replace(' ', ' --set ')}, or --set checkpoint_activations=true"
    )


def _loaders(config: TrainConfig, context: Context) -> int:
    if config.loop.loader_workers is not None:
        return config.loop.loader_workers
    # A CPU that trains loads in a thread beside it; a GPU is fed by the cores of its machine.
    local = max(torch.cuda.device_count(), 1)
    return 0 if context.device.type == "cpu" else max(min(cores() // local - 1, 12), 1)
