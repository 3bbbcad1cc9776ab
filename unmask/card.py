"""The model card: what a model is, what it was made from, how good it is, and what it must not be used for.

After Mitchell et al. 2019, "Model Cards for Model Reporting". What follows from the description is written here, for
every model; results and limits come from whoever measured them, and lie in the checkpoint's provenance under the key
`card`, so that they go where the model goes and its digest covers them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmask.checkpoints import Description
from unmask.provenance import USED

__all__ = ["CARD", "Section", "card_json", "card_markdown", "model_card"]

CARD = "card"
"""The key in a checkpoint's provenance."""

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a card.

    Args:
        title: A heading.
        text: Paragraphs.
        columns: Headings of a table, or none.
        rows: Its cells; numbers are shown with three digits after the point, None as a dash.
    """

    title: str
    text: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        table = {"columns": list(self.columns), "rows": [list(row) for row in self.rows]} if self.columns else {}
        return {"title": self.title, "text": list(self.text), **table}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Section":
        """The section that `to_json` gave; whatever else somebody wrote becomes text."""
        return cls(
            str(plain.get("title", "")),
            tuple(map(str, plain.get("text", ()))),
            tuple(map(str, plain.get("columns", ()))),
            tuple(tuple(map(_cell, row)) for row in plain.get("rows", ())),
        )

    def shown_rows(self) -> list[list[str]]:
        """The rows as text."""
        return [[_shown(value) for value in row] for row in self.rows]


def model_card(description: Description) -> list[Section]:
    """All sections of a model's card."""
    return [*_described(description), *_measured(description)]


def card_json(description: Description) -> dict[str, Any]:
    """The card as a plain dict, ready for `json.dumps`."""
    plain = description.to_json()
    plain["provenance"] = {k: v for k, v in plain["provenance"].items() if k not in (CARD, USED)}
    return {**plain, "card": [section.to_json() for section in model_card(description)]}


def card_markdown(description: Description) -> str:
    """The card as text that people read, with tables as Markdown writes them."""
    lines = [f"# {description.name} {description.version}", "", f"sha256 {description.sha256 or 'none'}"]
    for section in model_card(description):
        lines += ["", f"## {section.title}"]
        for paragraph in section.text:
            lines += ["", paragraph]
        if section.columns:
            lines += ["", *_table(section)]
    return "\n".join(lines) + "\n"


def _table(section: Section) -> Iterator[str]:
    rows = [list(section.columns), *section.shown_rows()]
    widths = [max(len(row[n]) if n < len(row) else 0 for row in rows) for n in range(len(section.columns))]
    numeric = [all(isinstance(row[n], int | float | None) for row in section.rows) for n in range(len(widths))]
    for number, row in enumerate(rows):
        cells = (text.rjust(width) if right else text.ljust(width)
                 for text, width, right in zip(row, widths, numeric, strict=True))  # fmt: skip
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            marks = zip(widths, numeric, strict=True)
            yield f"|{'|'.join('-' * (width + 1) + (':' if right else '-') for width, right in marks)}|"


def _described(description: Description) -> Iterator[Section]:
    config, preprocessing, calibration = description.config, description.preprocessing, description.calibration
    head = {
        "frame": "a head that judges single frames",
        "mobilenet": "MobileNetV3's own head, which judges single frames",
        "temporal": f"a head that judges the mean and standard deviation of up to {config.window} frames of one face",
        "l2": "a linear head on features of unit length",
        "fusion": f"a head that joins what RGB and depth of up to {config.window} frames of one face show",
    }[config.head]
    pyramid = ", with a feature pyramid" if config.pyramid else ""
    height, width = preprocessing.size_HW
    text = [
        f"{config.backbone}{pyramid}, and {head}. It takes crops of faces, {preprocessing.margin:.3g} times the size "
        f"of the detector's box, at {width} x {height} pixels.",
    ]
    if not description.trained:
        text.append("It was never trained to tell fakes from real faces: its scores say nothing.")
    yield Section("What it is", tuple(text))
    if config.task != "detection":
        return
    low, high = calibration.band
    band = f" Scores from {low:.3f} to {high:.3f} are inconclusive." if low < high else ""
    if calibration.fitted:
        source = calibration.source or "data it does not name"
        fitted = (
            f"The temperature {calibration.temperature:.3g} was fitted on {source}. "
            "A score is the probability of a fake where half of all videos are fakes; where they are rarer, it is less."
        )
    elif description.trained:
        fitted = "Scores are not calibrated: they order videos, and are no probabilities."
    else:
        fitted = "Scores are not calibrated."
    yield Section("How its scores are read", (f"{fitted} The threshold is {calibration.threshold:.3f}.{band}",))


def _measured(description: Description) -> Iterator[Section]:
    provenance = description.provenance
    known = {
        name: provenance[name]
        for name in ("recipe", "data", "splits", "epoch", "validation", "date", "weights", "versions")
        if provenance.get(name) not in (None, "", [], {})
    }
    if known:
        yield Section(
            "What it was made from",
            columns=("what", "value"),
            rows=tuple((name, _plain(value)) for name, value in known.items()),
        )
    measured = provenance.get(CARD)
    if isinstance(measured, Sequence) and not isinstance(measured, str):
        yield from (Section.from_json(plain) for plain in measured if isinstance(plain, Mapping))
    elif description.trained:
        yield Section("Results", ("Nobody has written down how good it is: see unmask evaluate.",))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(_cell(v))}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return _shown(_cell(value))


def _cell(value: Any) -> Cell:
    return value if value is None or (isinstance(value, str | int | float) and value is not True) else str(value)


def _shown(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
