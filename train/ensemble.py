"""Models that score together: named checkpoints with weights.

What an ensemble says of a frame, a face or a video is the weighted mean of what its members say of it: of their
calibrated probabilities, or of their opinion scores. Each member follows the video by itself, so that its windows, its
tracks' scores and the track that decides are its own; only results are averaged. That is what S0 (0.75 and 0.25) and S2
(an equal mean) do. The threshold is the weighted mean of the members' own.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.checkpoints import Description
from unmask.errors import UsageError
from unmask.models import ForgeryModel

__all__ = ["Ensemble", "Member", "shares", "weighted_names"]

_WEIGHTED = re.compile(r"(?P<name>.+):(?P<weight>\d+\.?\d*|\.\d+)")


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One model of an ensemble.

    Args:
        name: What to call it: as its checkpoint does, told apart from the other members.
        given: As the user named it.
        model: In evaluation mode.
        description: The model's.
        weight: Its share; those of all members sum to 1.
    """

    name: str
    given: str
    model: ForgeryModel
    description: Description
    weight: float

    def to_json(self) -> dict[str, Any]:
        """Which model this is, and what it says of itself; without the digests of what it was made from."""
        plain = self.description.to_json()
        provenance = {k: v for k, v in plain["provenance"].items() if k != "used"}
        return {**plain, "name": self.name, "given": self.given, "weight": self.weight, "provenance": provenance}


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """One or more models of one task."""

    members: tuple[Member, ...]

    @classmethod
    def load(cls, names: Sequence[str], device: torch.device | str = "cpu") -> "Ensemble":
        """Load the models that a user means.

        Args:
            names: Each a checkpoint's path, a preset, a timm backbone or an `ensemble.json`; with `:WEIGHT` behind it
                or without. See `shares`.
            device: Where they shall run.

        Raises:
            ModelError: A model cannot be had or trusted.
            UsageError: Weights that make no shares, a faulty `ensemble.json`, models of different tasks, or
                models that judge other faces, for want of a depth map.
        """
        from unmask.presets import resolve

        found = [(given, weight, *resolve(given, device=device)) for given, weight in weighted_names(names)]
        titles = [description.name for _, _, _, description in found]
        members = tuple(
            Member(
                name=title if titles.count(title) == 1 else f"{title} ({n})",
                given=given,
                model=model,
                description=description,
                weight=weight,
            )
            for n, (title, (given, weight, model, description)) in enumerate(zip(titles, found, strict=True), 1)
        )
        if len({member.model.config.task for member in members}) > 1:
            tasks = ", ".join(f"{m.name} ({m.model.config.task})" for m in members)
            raise UsageError(f"detectors and models of opinion scores cannot be averaged; got {tasks}")
        if len({_maps(member) for member in members}) > 1:
            heads = ", ".join(f"{m.name} ({m.model.config.head})" for m in members)
            raise UsageError(
                "a model with depth maps judges the faces that have one, and is averaged only with models of the same "
                f"maps; got {heads}"
            )
        return cls(members)

    @property
    def name(self) -> str:
        """What to call it."""
        return " + ".join(
            member.name if len(self.members) == 1 else f"{member.weight:.3g} {member.name}" for member in self.members
        )

    @property
    def is_mos(self) -> bool:
        """Whether it predicts opinion scores."""
        return any(member.model.config.task == "mos" for member in self.members)

    @property
    def threshold(self) -> float:
        """From here on a probability says "fake"."""
        return sum(m.weight * m.description.calibration.threshold for m in self.members)

    @property
    def trained(self) -> bool:
        """Whether all members were."""
        return all(member.description.trained for member in self.members)

    @property
    def calibrated(self) -> bool:
        """Whether all members are; the mean of calibrated probabilities need not be calibrated."""
        return self.trained and all(member.description.calibration.fitted for member in self.members)


def _maps(member: Member) -> str:
    """What says which faces have a depth map; nothing where none is needed."""
    if member.model.config.head != "fusion":
        return ""
    said = (member.description.provenance.get("depth"), member.description.preprocessing.to_json())
    return json.dumps(said, sort_keys=True)


def weighted_names(names: Sequence[str]) -> list[tuple[str, float]]:
    """Models and their shares, which sum to 1; an `ensemble.json` is replaced by its members.

    Raises:
        UsageError: Weights that make no shares, or a faulty `ensemble.json`.
    """
    if not names:
        raise UsageError("there is no model to evaluate; name one with --model")
    split = [_split(name) for name in names]
    weights = shares([weight for _, weight in split])
    return [
        (model, weight * share)
        for (name, _), weight in zip(split, weights, strict=True)
        for model, share in _members(name)
    ]


def shares(weights: Sequence[float | None]) -> list[float]:
    """Weights as shares of 1.

    Where none is given, all are equal; where some are, they are shares already, and the others get equal parts of
    what they leave; where all are, they are divided by their sum.

    Raises:
        UsageError: A weight that is not above 0, or given ones that leave nothing for the others.
    """
    given = [w for w in weights if w is not None]
    if not all(math.isfinite(w) and w > 0 for w in given):
        raise UsageError(f"a model's weight is above 0; got {min(given):g}")
    if len(given) == len(weights):
        return [w / math.fsum(given) for w in given]
    rest = 1.0 - math.fsum(given)
    if rest <= 1e-9:
        raise UsageError(f"the weights given sum to {sum(given):g} and leave nothing for the other models; weigh all")
    return [rest / (len(weights) - len(given)) if w is None else w for w in weights]


def _split(name: str) -> tuple[str, float | None]:
    parts = _WEIGHTED.fullmatch(name)
    if parts is None or Path(name).exists():
        return name, None
    return parts["name"], float(parts["weight"])


def _members(name: str) -> Iterator[tuple[str, float]]:
    if not name.endswith(".json"):
        yield name, 1.0
        return
    path = Path(name)
    try:
        listed = [(m["model"], m.get("weight")) for m in json.loads(path.read_text(encoding="utf-8"))["members"]]
    except OSError as error:
        raise UsageError(f"the ensemble {name} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        listed = []
    if not listed or not all(
        isinstance(model, str) and model and (weight is None or type(weight) in (int, float))
        for model, weight in listed
    ):
        raise UsageError(
            f'{name} is no ensemble; it must read {{"members": [{{"model": "a.safetensors", "weight": 0.5}}, ...]}}'
        )
    for (model, _), share in zip(listed, shares([weight for _, weight in listed]), strict=True):
        # Checkpoints lie beside the file that names them.
        beside = path.parent / model
        yield str(beside) if beside.exists() else model, share
