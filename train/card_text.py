"""What the card of the small model says, from what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from unmask.card import Section
from unmask.intervals import share_interval

__all__ = ["sections"]

_MODELS = {
    "shipped": "this model",
    "frames": "without the temporal head",
    "plain": "without the head, nor shared video in training",
}
_METHOD = (
    "No fake of any dataset was used, neither to train nor to choose anything. Fakes are made from real photographs "
    "(self-blended images, Shiohara & Yamasaki 2022): a face is blended with a changed copy of itself, over the whole "
    "face or its parts, with other colours, other frequencies, another resolution, bent features or the traces of "
    "up-sampling.",
    "Real and fake of a pair go through the same flips, colours and crops, and most of them then the way of shared "
    "videos: scaled down, noisy, sharpened or blurred, and encoded as H.264. In some pairs the whole picture, real and "
    "fake, is filtered, lit or warped like only a pasted face is elsewhere (hard negatives).",
    "The backbone starts from ImageNet weights and learns to say where a face was "
    "blended as well as whether. The temporal head is trained after it, on clips that are made of photographs: the "
    "face moves, the camera drifts, the light changes; fakes also tremble, flicker or freeze.",
)
_FAILURES = (
    "It knows faces like those it was trained on (see Data). Other ages, other light, other skin and other angles are "
    "less well known to it, and how much worse it does there was not measured.",
    "Its real clips are photographs that were set in motion. Real video has motion, blur and compression that these "
    "lack, so its scores on real video are less reliable than those on the test people; the table of real clips shows "
    "how they come out.",
    "It knows what blending leaves. Faces that are generated as a whole, without a seam, and fakes whose seams were "
    "compressed away, are outside of what it was made for.",
    "Beauty filters, face make-up in software and virtual backgrounds blend too, and may be called manipulated.",
)
_NOT_FOR = (
    "It must not be the only ground for an accusation, a takedown, a legal step or a decision about a person: a score "
    "is a reason to look closer, together with the source and the history of the file.",
    "It must not be used to say that a video is genuine: it looks at faces alone, and only for what it knows.",
    "It must not be used to identify, follow or rate people.",
)


def sections(
    facts: Mapping[str, Any],
    *,
    heldout: Mapping[str, Any],
    compared: Mapping[str, Any],
    families: Mapping[str, Any],
    robust: Sequence[Mapping[str, Any]],
    scored: Sequence[Mapping[str, Any]],
) -> list[Section]:
    """The sections that follow the description.

    Args:
        facts: What the portraits are, people by split, number of weights, speed, and how the weights came about, where
            that is to be said.
        heldout: Metrics of the model by condition, on people of the test; as shared videos among them.
        compared: Metrics by condition of the model and its baselines.
        families: Metrics of the model by family of self-blends.
        robust: A row a perturbation and severity.
        scored: A row a labelled clip.
    """
    people = facts["people"]
    data = (
        f"{facts['portraits']} One photograph a person: {people['train']} people to train, {people['val']} to choose "
        f"the epoch and to calibrate, {people['test']} for the tests below. Nobody is in two of these.",
        "No frame of a public dataset of videos was trained on: their terms allow research alone, these weights may be "
        "passed on.",
    )
    size = (
        f"{facts['weights'] / 1e6:.2f} million weights, kept as float16. "
        f"{facts['speed']['ms_a_face']:.1f} ms a face on one thread of the processor it was measured on.",
    )
    history = (facts["history"],) if facts["history"] else ()
    return [
        Section("Data", data),
        Section("Method", (*_METHOD, *history)),
        Section("Size and speed", size),
        _operating_point(heldout["shared"]),
        _heldout({**heldout, **families}),
        _compared(compared),
        _robustness(robust),
        *([_clips(scored)] if scored else []),
        Section("Known failures", (*_FAILURES, _worst(families))),
        Section("What it must not be used for", _NOT_FOR),
    ]


def _operating_point(shared: Mapping[str, Any]) -> Section:
    found = shared["models"]["shipped"]
    low, high = share_interval(found["real_called_manipulated"], found["people"])
    text = (
        f"Of {shared['clips'] // 2} real clips of {found['people']} test people, photographs set in motion and sent "
        f"the way of shared videos, {found['real_called_manipulated']:.1%} are called manipulated (the false-positive "
        f"rate). Were there one clip a person, its 95% interval would be {low:.1%} to {high:.1%}. Of as many fakes "
        f"{found['fake_called_authentic']:.1%} are called authentic, and {found['inconclusive']:.1%} of all get no "
        "verdict. Small, blurred and far turned faces get none either.",
        "That is for one window of one face. A video is judged by its most suspicious face, so a video of many people "
        "errs more often.",
    )
    return Section("Operating point", text)


def _worst(families: Mapping[str, Any]) -> str:
    """Which two families are missed most."""
    aucs = {found["title"]: found["models"]["shipped"]["auc"]["value"] for found in families.values()}
    worst = sorted((title for title in aucs if aucs[title] is not None), key=aucs.__getitem__)[:2]
    return "Of the families of blends by themselves it misses most: " + "; ".join(
        f"{title}, AUC {aucs[title]:.3f}" for title in worst
    ) + "."  # fmt: skip


def _interval(measure: Mapping[str, Any]) -> str:
    if measure["value"] is None:
        return "-"
    value = f"{measure['value']:.3f}"
    return value if measure["low"] is None else f"{value} ({measure['low']:.3f} to {measure['high']:.3f})"


def _heldout(measured: Mapping[str, Any]) -> Section:
    rows = []
    for condition in measured.values():
        metrics = condition["models"]["shipped"]
        ece = f"{metrics['ece']['value']:.3f} ({metrics['ece_by_chance']:.3f})"
        rows.append((condition["title"], condition["clips"], *(_interval(metrics[n]) for n in ("auc", "eer")), ece))
    return Section(
        "Test people: self-blended against pristine clips",
        (
            "Metrics with 95% intervals, drawn by person, real and fake apart. Beside the ECE, in 15 bins, what chance "
            "alone would make it on as many clips, were every probability true.",
        ),
        ("what", "clips", "AUC", "EER", "ECE"),
        tuple(rows),
    )


def _compared(measured: Mapping[str, Any]) -> Section:
    rows = [
        (condition["title"], *(_interval(condition["models"][name]["auc"]) for name in _MODELS))
        for condition in measured.values()
        if set(_MODELS) <= set(condition["models"])
    ]
    return Section(
        "What each ingredient gives: AUC on the same clips",
        (
            "All are trained on the same people and calibrated on the same clips. Each step starts from the one to its "
            "right: photographs, then shared video, then clips; so a step's gain is also that of its further epochs. "
            "Those of the first had come to their end: the best of its epochs is taken, and later ones were no better.",
        ),
        ("what", *_MODELS.values()),
        tuple(rows),
    )


def _robustness(robust: Sequence[Mapping[str, Any]]) -> Section:
    by_title: dict[str, list[Mapping[str, Any]]] = {}
    for row in robust:
        by_title.setdefault(row["title"], []).append(row)
    most = max(map(len, by_title.values()), default=0)
    rows = []
    for title, found in by_title.items():
        cells = [f"{r['value']:g}: {r['auc']['value']:.3f}, {r['real_called_manipulated']:.0%}" for r in found]
        rows.append((title, *cells, *[None] * (most - len(cells))))
    return Section(
        "Robustness: value of the perturbation, AUC, and real clips called manipulated",
        (
            "Perturbations of DeeperForensics-1.0 and an H.264 sweep, on the crops of a real and a fake clip each of "
            f"{robust[0]['people']} test people, as photographed: so few that a clip more or less is "
            f"{1 / robust[0]['people']:.0%}.",
        ),
        ("perturbation", *(f"severity {n + 1}" for n in range(most))),
        tuple(rows),
    )


def _clips(scored: Sequence[Mapping[str, Any]]) -> Section:
    of = {row["video"]: row for row in scored}
    rows, ordered, pairs = [], 0, 0
    for row in scored:
        own = row["models"]["shipped"]
        others = (row["models"][name]["score"] for name in ("frames", "plain"))
        truth = {0: "real", 1: "fake"}.get(row["label"], "-")
        said = own["verdict"] if own["status"] == "scored" else own["status"]
        rows.append((row["video"], truth, row["method"], own["score"], said, *others))
        original = of.get(row["source"] or "")
        if row["label"] == 1 and original is not None:
            theirs = original["models"]["shipped"]["score"]
            pairs += 1
            ordered += bool(own["score"] is not None and theirs is not None and own["score"] > theirs)
    reals = [row["models"]["shipped"]["verdict"] for row in scored if row["label"] == 0]
    fakes = [row["models"]["shipped"]["verdict"] for row in scored if row["label"] == 1]
    text = (
        "Clips that nothing was trained on, chosen by or tuned after: scored once, with 32 frames each.",
        f"Of {len(reals)} real clips {reals.count('manipulated')} are called manipulated, {reals.count('authentic')} "
        f"authentic; of {len(fakes)} fakes {fakes.count('manipulated')} are called manipulated, "
        f"{fakes.count('authentic')} authentic; the others get no verdict. In {ordered} of {pairs} pairs the fake "
        "scores above its original. So few clips say little about others.",
    )
    return Section(
        "Real videos", text, ("clip", "is", "method", "score", "verdict", *list(_MODELS.values())[1:]), tuple(rows)
    )
