"""The state of a run between two steps: all that it takes to go on as if it had never stopped.

One file, written beside and renamed (in a bucket: one upload), so that it is whole or that of before. It is read with
`weights_only=True`.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from train.context import Context
from unmask.errors import StorageError
from unmask.storage import Store

__all__ = ["LAST", "Progress", "load", "random_state", "restore_random", "save"]

LAST = "last.pt"
"""The file's name in a run's folder."""

_FORMAT = 1


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """The epoch that is under way, from 0."""
    step: int = 0
    """Batches of it that are done."""
    updates: int = 0
    """Steps of the optimiser in all."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch so far, over this worker's batches."""
    course: dict[str, Any] = field(default_factory=dict)
    """What validation said so far."""


def random_state(device: torch.device) -> Tensor:
    """Of PyTorch's generators on this worker, as bytes (1, n): the CPU's, and the GPU's after it."""
    parts = [torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)[None]


def restore_random(state: Tensor, device: torch.device) -> None:
    """Set PyTorch's generators on this worker."""
    size = len(torch.get_rng_state())
    flat = state.flatten()
    torch.set_rng_state(flat[:size].clone())
    if device.type == "cuda" and len(flat) > size:
        torch.cuda.set_rng_state(flat[size:].clone(), device)


def save(store: Store, name: str, parts: dict[str, Any], progress: Progress, context: Context) -> None:
    """Write the state of a run; every worker calls this, and the first one writes.

    Args:
        store: The run's folder.
        name: Of the file.
        parts: State dicts of model, optimiser, scaler and the like.
        progress: Of this worker; its sums are added up over all.
        context: The workers.

    Raises:
        StorageError: Nothing can be written there.
    """
    generators = torch.cat(context.gather(random_state(context.device)))
    names = sorted(progress.sums)
    sums = dict(zip(names, context.sum([progress.sums[n] for n in names]), strict=True))
    if context.leads:
        counts = {k: getattr(progress, k) for k in ("epoch", "step", "updates", "course")}
        whole = {**parts, "format": _FORMAT, "progress": counts | {"sums": sums}, "generators": generators}
        # Through a file: the state of a large model is three times the model.
        with TemporaryDirectory() as scratch, store.writing(name, Path(scratch)) as path:
            torch.save(whole, path)
    context.barrier()


def load(store: Store, name: str, context: Context) -> tuple[dict[str, Any], Progress] | None:
    """Read the state of a run; every worker calls this. None where there is none.

    Sums go to the first worker, so that they are counted once.

    Raises:
        StorageError: It cannot be read, is damaged, or of another number of workers.
    """
    if not store.exists(name):
        return None
    try:
        state = torch.load(io.BytesIO(store.read(name)), map_location="cpu", weights_only=True)
        progress, generators = Progress(**state.pop("progress")), state.pop("generators")
        assert state.pop("format") == _FORMAT
    except StorageError:
        raise
    except Exception as error:  # a damaged file may trip the reader anywhere
        raise StorageError(
            f"{store.shown}/{name} is damaged ({type(error).__name__}); remove it to train that model anew"
        ) from error
    if len(generators) == context.workers:
        restore_random(generators[context.rank], context.device)
    elif progress.step:
        raise StorageError(
            f"{store.shown} was begun with {len(generators)} worker{'s' * (len(generators) > 1)} and stopped within an "
            f"epoch; go on with --workers {len(generators)}"
        )
    if not context.leads:
        progress.sums = dict.fromkeys(progress.sums, 0.0)
    return state, progress
