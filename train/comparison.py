"""A student beside its teachers: size, speed, and the same measures on the same people, whom neither was trained on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from train.config import TrainConfig
from train.ensemble import Ensemble, Member
from train.heldout import heldout_scores
from train.splits import untold
from train.turns import TIMED_BATCH, how_timed, medians
from unmask import console
from unmask.storage import Store
from unmask.transforms import to_tensor

__all__ = ["COMPARISON", "compare", "show_comparison", "sizes_of"]

COMPARISON = "evaluation/distill.json"
"""The file in a training's folder."""

_SIDE = 256
_SHOWN = ("auc", "eer", "log_loss", "ece")


def compare(model: str, config: TrainConfig, data: Sequence[str], store: Store, device: torch.device) -> dict[str, Any]:
    """Measure a student and its teachers, and write what came of it.

    Args:
        model: The student's checkpoint, on this machine.
        config: Of its training, which says who its teachers are and who was left for the test.
        data: The same as in training.
        store: The training's folder.
        device: Where they run.

    Returns:
        What `COMPARISON` holds: of each model `sizes_of`, and its measures with 95% intervals by video; the student
        first, then its teachers, several of them also together. The student's share of all their weights, and what its
        AUC lacks of theirs; in sentences, who does not say whom it knows.

    Raises:
        UsageError: Nobody was left for the test whom none of them knows.
    """
    teachers = Ensemble.load(config.distill.teachers, device)
    (student,) = Ensemble.load([model], device).members
    if student.name in {member.name for member in teachers.members}:
        student = replace(student, name=f"{student.name} (student)")
    members = [student, *teachers.members]
    rows = [{"name": member.name, **size} for member, size in zip(members, sizes_of(members, device), strict=True)]
    if len(teachers.members) > 1:
        sums = {key: sum(row[key] for row in rows[1:]) for key in ("weights", "bytes", "ms_per_crop")}
        rows.append({"name": teachers.name, **sums})
    measure = _of_blends if config.data.draw == "selfblend" else _of_videos
    for row, metrics in zip(rows, measure(members, teachers, config, data, store, device), strict=True):
        row["metrics"] = metrics
    own, theirs = rows[0], rows[-1]
    found: dict[str, Any] = {
        "device": device.type,
        "timed": how_timed(TIMED_BATCH, device),
        "models": rows,
        "weights": own["weights"] / theirs["weights"],
    }
    both = [row["metrics"].get("auc", {}).get("value") for row in (own, theirs)]
    found["auc_lost"] = None if None in both else both[1] - both[0]
    found["caveats"] = [said for member in members for said in untold(member.name, member.description)]
    store.write(COMPARISON, (json.dumps(found, indent=1) + "\n").encode())
    return found


@torch.inference_mode()
def sizes_of(members: Sequence[Member], device: torch.device) -> list[dict[str, Any]]:
    """How many weights each model has, how many bytes they take in single precision, and milliseconds a crop.

    Times are of `train.turns`, on the same crops, each at its model's size.
    """
    shape = (_SIDE, _SIDE, 3)
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(TIMED_BATCH)]
    runs = [partial(m.model.features, to_tensor(crops, m.description.preprocessing, device)) for m in members]
    found = []
    for member, took in zip(members, medians(runs, device), strict=True):
        every = [*member.model.parameters(), *member.model.buffers()]
        found.append(
            {
                "weights": sum(p.numel() for p in member.model.parameters()),
                "bytes": sum(t.numel() * t.element_size() for t in every),
                "ms_per_crop": round(took / TIMED_BATCH * 1000, 3),
            }
        )
    return found


def _of_blends(
    members: Sequence[Member],
    teachers: Ensemble,
    config: TrainConfig,
    data: Sequence[str],
    store: Store,  # noqa: ARG001  nothing is written
    device: torch.device,
) -> Iterator[Mapping[str, Any]]:
    """Of self-blended people who were left: the student, its teachers, and several of them together."""
    kind, said = config.augment.blends, []
    for member in members:
        own = replace(config.model, head=member.model.config.head, window=member.model.config.window)
        asked = replace(config, model=own, distill=replace(config.distill, teachers=()))
        others = [other.description for other in members]
        ((_, found),) = heldout_scores(member.model, member.description, asked, data, device, [kind], others)
        said.append(found)
        yield found.measures(member.description.calibration.threshold)
    several = said[1:]
    if len(several) > 1:
        # Of clips and frames there is no mean.
        alike = len({(found.level, len(found.label_K)) for found in several}) == 1
        shares = [member.weight for member in teachers.members]
        mean_K = np.average([found.probability_K for found in several], axis=0, weights=shares) if alike else None
        yield {} if mean_K is None else replace(several[0], probability_K=mean_K).measures(teachers.threshold)


def _of_videos(
    members: Sequence[Member],
    teachers: Ensemble,
    config: TrainConfig,
    data: Sequence[str],
    store: Store,
    device: torch.device,
) -> Iterator[Mapping[str, Any]]:
    """What `unmask evaluate` says of the same videos, which none of them has seen."""
    from train.evaluate import write_evaluation
    from train.findings import Examination

    asked = [(member.name, [member.given]) for member in members]
    asked += [("teachers", list(config.distill.teachers))] if len(teachers.members) > 1 else []
    videos: set[tuple[str, ...]] = set()
    for n, (name, models) in enumerate(asked):
        # Numbered, since a name may be anything, and two may be the same.
        place = Store(store.uri_of(f"evaluation/{n}-{name.replace('/', '-')}"))
        document = write_evaluation(models, list(data), place, "unseen", device.type, Examination(), members)
        videos.add(tuple(row["video"] for row in document["videos"]))
        assert len(videos) == 1
        overall: Mapping[str, Any] = document["results"]["overall"]["video"]["metrics"]
        yield overall


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the models beside each other, and what has to be said."""
    for sentence in found["caveats"]:
        console.say(sentence)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Model", overflow="fold")
    for heading in ("M weights", "MB", "ms a crop", *(name.upper().replace("_", " ") for name in _SHOWN)):
        table.add_column(heading, justify="right")
    for row in found["models"]:
        values = (row["metrics"].get(name, {}).get("value") for name in _SHOWN)
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        sizes = (f"{row['weights'] / 1e6:.2f}", f"{row['bytes'] / 1e6:.1f}", f"{row['ms_per_crop']:.2f}")
        table.add_row(escape(row["name"]), *sizes, *cells)
    console.out.print(table)
