"""Models side by side on the same clips of people who were not trained on: pristine against self-blended.

Photographs are filmed (`train.augment.film`), blended or not, and go the way of shared videos or stay as they are. A
model of frames gives a clip the mean of its frames' probabilities; a temporal one reads it whole.

Axes: K clips, M valid frames of a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from train.augment.selfblend import BLENDS, SelfBlend
from train.augment.strategies import strategy
from train.catalogue import Catalogue
from train.clips import Batch, Samples, batches
from train.config import TrainConfig
from train.crops import CropReader
from train.material import pool_of
from train.network import Network
from train.perturb import perturbed
from train.robustness import settings
from train.samplers import Key
from unmask.checkpoints import Description
from unmask.models import ForgeryModel

__all__ = ["CONDITIONS", "FAMILIES", "Condition", "Outcome", "Trial", "perturbations"]

Model = tuple[ForgeryModel, Description]
_BATCH = 8
_FAMILIES = BLENDS["video"].families


@dataclass(frozen=True, slots=True)
class Condition:
    """What is told apart.

    Args:
        title: In words.
        blend: Makes the fakes.
        shared: Whether clips go the way of shared videos (`train.augment.degrade`).
    """

    title: str
    blend: SelfBlend
    shared: bool


def _rhythm(name: str) -> SelfBlend:
    return SelfBlend(families=_FAMILIES, rhythms={name: 1.0})  # type: ignore[dict-item]


CONDITIONS: Mapping[str, Condition] = {
    "shared": Condition("all fakes, as shared videos", BLENDS["video"], shared=True),
    "clean": Condition("all fakes, as photographed", BLENDS["video"], shared=False),
    "paper": Condition("the paper's blends, as shared videos", BLENDS["paper"], shared=True),
    "jitter": Condition("fakes that tremble, as shared videos", _rhythm("jitter"), shared=True),
    "flicker": Condition("fakes that flicker, as shared videos", _rhythm("flicker"), shared=True),
    "frozen": Condition("fakes that freeze, as shared videos", _rhythm("frozen"), shared=True),
}
"""By name."""

FAMILIES: Mapping[str, Condition] = {
    name: Condition(f"{name} alone, as photographed", SelfBlend(families={name: 1.0}), shared=False)
    for name in BLENDS["video"].families
}
"""Each family of self-blends by itself (`train.augment.families`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What models said of the same clips.

    Args:
        logits: Of each model by name, float64 (K,), without calibration; of a model of frames, the logit of the mean
            probability.
        labels_K: 1 for a fake.
        people_K: Which photograph each clip is of.
    """

    logits: Mapping[str, NDArray[np.float64]]
    labels_K: NDArray[np.float64]
    people_K: NDArray[np.int64]


class Trial:
    """Clips of one split's people.

    Args:
        catalogue: All faces.
        videos: The people's, by number.
        config: A configuration of clips (temporal head, self-blends): it says how long they are.
        models: By name; all take the same crops.
        device: Where they run.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        videos: Sequence[int],
        config: TrainConfig,
        models: Mapping[str, Model],
        device: torch.device,
    ) -> None:
        self._catalogue, self._config, self._device = catalogue, config, device
        self._pool = pool_of(catalogue, videos, config, "test")
        self._reader = CropReader(catalogue)
        self._networks = {
            name: Network(model.to(device).eval(), description.preprocessing)
            for name, (model, description) in models.items()
        }
        self._preprocessing = next(iter(models.values()))[1].preprocessing

    @property
    def people(self) -> int:
        """How many there are."""
        return len(self._pool)

    @torch.inference_mode()
    def run(
        self,
        condition: Condition,
        *,
        draws: int = 1,
        people: int | None = None,
        seed: int = 0,
        change: Callable[[list[NDArray[np.uint8]], int], list[NDArray[np.uint8]]] | None = None,
    ) -> Outcome:
        """Show every model the same clips.

        Args:
            condition: Which fakes, and whether as shared videos.
            draws: Clips of each person, real and fake.
            people: At most so many; all where None.
            seed: Of all that is drawn.
            change: Takes the frames of a clip and its number, and gives as many of the same size.
        """
        samples = Samples(
            self._catalogue,
            self._reader,
            self._pool,
            self._config,
            self._preprocessing,
            strategy=strategy("video", self._preprocessing.size_HW) if condition.shared else None,
            blend=condition.blend,
            seed=seed,
        )
        units = range(min(people or len(self._pool), len(self._pool)))
        keys = [Key(-1, 2 * (draw * len(self._pool) + unit) + fake, unit, bool(fake))
                for draw in range(draws) for unit in units for fake in (0, 1)]  # fmt: skip
        logits: dict[str, list[NDArray[np.float64]]] = {name: [] for name in self._networks}
        done = 0
        for batch in batches(samples, [keys[k : k + _BATCH] for k in range(0, len(keys), _BATCH)], workers=0):
            if change is not None:
                _change(batch, change, done)
            done += len(batch)
            for name, network in self._networks.items():
                logits[name].append(_clip_logits(network, batch, self._device))
        return Outcome(
            {name: np.concatenate(parts) for name, parts in logits.items()},
            np.array([float(key.blend) for key in keys]),
            np.array([key.unit for key in keys]),
        )


def perturbations(trial: Trial, *, people: int) -> Iterator[tuple[str, str, float, Outcome]]:
    """Every perturbation of `train.robustness` at every severity: name, title, value and what the models say."""
    for name, title, _, values in settings():
        for value in values:
            of = "compression" if name == "crf" else name

            def change(
                frames: list[NDArray[np.uint8]], clip: int, of: str = of, value: float = value
            ) -> list[NDArray[np.uint8]]:
                rng = np.random.default_rng([clip // 2, int(1000 * value)])
                return perturbed(frames, np.zeros(len(frames), np.int64), of, value, rng)

            yield name, title, value, trial.run(CONDITIONS["clean"], people=people, change=change)


def _change(
    batch: Batch, change: Callable[[list[NDArray[np.uint8]], int], list[NDArray[np.uint8]]], first: int
) -> None:
    """In place: pixels were made for this batch alone."""
    for n in range(len(batch)):
        frames = batch.pixels[n, batch.valid_BT[n]].numpy()
        changed = change(list(frames), first + n)
        batch.pixels[n, batch.valid_BT[n]] = torch.from_numpy(np.stack(changed))


def _clip_logits(network: Network, batch: Batch, device: torch.device) -> NDArray[np.float64]:
    logits: NDArray[np.float64] = network.logits(batch, device).double().cpu().numpy()
    if network.model.is_temporal:
        return logits
    # One logit a valid frame: the mean of each clip's probabilities.
    clip_M = np.repeat(np.arange(len(batch)), batch.valid_BT.sum(1).numpy())
    probability_M = np.exp(-np.logaddexp(0.0, -logits))
    mean_B = np.bincount(clip_M, probability_M) / np.bincount(clip_M)
    clipped_B = np.clip(mean_B, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(clipped_B / (1 - clipped_B)), np.float64)
