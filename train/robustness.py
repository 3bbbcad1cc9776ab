"""How much a detector loses when videos are perturbed: every perturbation at every severity, and a CRF sweep.

Axes: N faces.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.embedding import Change
from train.perturb import CRF_SWEEP, PERTURBATIONS, perturbed
from train.selection import Selection
from unmask.metrics import Measure

__all__ = ["CRF", "RobustnessRow", "fair_sample", "passes", "settings", "sweep"]

CRF = "crf"
"""What the sweep is called among the perturbations."""


@dataclass(frozen=True, slots=True)
class RobustnessRow:
    """What one perturbation leaves.

    Args:
        name: Of `PERTURBATIONS`, or `crf`.
        title: In words.
        value: What the values are.
        values: One a column.
        measures: One a column.
    """

    name: str
    title: str
    value: str
    values: tuple[float, ...]
    measures: tuple[Measure, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        return {
            "name": self.name,
            "title": self.title,
            "value": self.value,
            "at": [{"of": v, **m.to_json()} for v, m in zip(self.values, self.measures, strict=True)],
        }


def fair_sample(labels_V: Sequence[int | None], most: int, seed: int) -> list[int]:
    """At most so many videos, of each label as many as of the other where there are enough; in order.

    Args:
        labels_V: Of each video; any values that tell classes apart.
        most: How many; 0 for all.
        seed: Of the choice.

    Returns:
        Their positions.
    """
    if not most or len(labels_V) <= most:
        return list(range(len(labels_V)))
    rng = np.random.default_rng(seed)
    classes: dict[int | None, list[int]] = {}
    for n in rng.permutation(len(labels_V)).tolist():
        classes.setdefault(labels_V[n], []).append(n)
    # The nth of each class comes before the n + 1st of any.
    ranked = sorted((rank, n) for members in classes.values() for rank, n in enumerate(members))
    return sorted(n for _, n in ranked[:most])


def settings() -> Iterator[tuple[str, str, str, tuple[float, ...]]]:
    """What is swept: name, title, what the values are, and the values."""
    for name, perturbation in PERTURBATIONS.items():
        yield name, perturbation.title, perturbation.value, perturbation.values
    yield CRF, "H.264 sweep", "CRF", CRF_SWEEP


def passes() -> int:
    """How often `sweep` measures."""
    return 1 + len({(_made_by(name), at) for name, _, _, values in settings() for at in values})


def _made_by(name: str) -> str:
    """The perturbation behind a row: the sweep is video compression at other rates."""
    return "compression" if name == CRF else name


def sweep(
    selection: Selection, measure: Callable[[Change | None], Measure], *, seed: int = 0
) -> tuple[Measure, list[RobustnessRow]]:
    """Measure what is left under every perturbation.

    Args:
        selection: What is evaluated.
        measure: Scores the videos with a change of their crops, or without, and gives the metric.
        seed: Of noise and places.

    Returns:
        The metric on crops as they are, and a row a perturbation.
    """
    clean = measure(None)
    known: dict[tuple[str, float], Measure] = {}
    rows = []
    for name, title, value, values in settings():
        of = _made_by(name)
        for at in values:
            if (of, at) not in known:  # the sweep shares rates with the compression
                known[of, at] = measure(_change(selection, of, at, seed))
        rows.append(RobustnessRow(name, title, value, values, tuple(known[of, at] for at in values)))
    return clean, rows


def _change(selection: Selection, name: str, value: float, seed: int) -> Change:
    catalogue = selection.catalogue

    def change(crops: Sequence[NDArray[np.uint8]], rows_N: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        if not len(rows_N):
            return []
        # The same noise for every member and every run, and another for every stretch of every video.
        key = f"{catalogue.videos[catalogue.video_N[rows_N[0]]].key} {int(catalogue.frame_N[rows_N[0]])} {name} {value}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
        return perturbed(crops, catalogue.track_N[rows_N], name, value, rng)

    return change
