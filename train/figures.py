"""The plots of an evaluation, as SVG that fits a light and a dark page: its colours follow the reader's scheme.

Each function gives the text of one SVG. Letters are drawn as outlines, so that nothing depends on installed fonts.

Axes: T thresholds, B bins, S severities, N items.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from unmask.metrics import Detections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "deletion_plot",
    "opinion_plot",
    "precision_recall_plot",
    "reliability_plot",
    "robustness_plot",
    "roc_plot",
    "score_histogram",
    "time_plot",
]

# Colours that no plot has otherwise stand for those that follow the scheme: light and dark.
_SCHEME = {
    "#010203": ("ink", "#131820", "#e8edf2"),
    "#010204": ("soft", "#525d6b", "#a4b0bd"),
    "#010205": ("grid", "#dfe4ea", "#2b3540"),
    "#010206": ("real", "#1f6fc4", "#7fb4ff"),
    "#010207": ("fake", "#c2410c", "#ff9d66"),
}
_INK, _SOFT, _GRID, _REAL, _FAKE = _SCHEME
# Seen on white and on black.
_LINES = ("#3b82d6", "#d97706", "#2f9e6e", "#a463d6", "#d2473f", "#1f9aa8", "#a5774a", "#c9609b")
_DASHES = ("-", "--", "-.", ":")
_SIZE_IN = (4.3, 3.7)
_BINS = 20
_POINTS = 400


@contextmanager
def _drawing(size_in: tuple[float, float] = _SIZE_IN) -> Iterator[tuple["Figure", list[str]]]:
    """A figure to draw on; when the block ends, its SVG is the list's only item."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out: list[str] = []
    style: dict[Any, Any] = {
        "svg.hashsalt": "unmask",
        "font.size": 10,
        "axes.edgecolor": _SOFT,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _SOFT,
        "ytick.color": _SOFT,
        "grid.color": _GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        # A letter that the font lacks becomes a box; the page spells the name out.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=size_in, layout="constrained")
        yield figure, out
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    out.append(_schemed(text.getvalue()))


def _schemed(svg: str) -> str:
    """Put the scheme's colours in place of those that stand for them, and leave out what no reader needs."""
    for stand_in, (name, _, _) in _SCHEME.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    light, dark = (";".join(f"--{name}:{both[n]}" for name, *both in _SCHEME.values()) for n in (0, 1))
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(r"(<svg[^>]*>)", lambda tag: tag[1] + style, svg, count=1)


def _unit_axes(figure: "Figure", x: str, y: str) -> "Axes":
    axes = figure.add_subplot(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    return axes


def roc_plot(groups: Mapping[str, Detections]) -> str:
    """ROC curves, one a group that has both classes; the first is drawn strongest."""
    with _drawing() as (figure, out):
        axes = _unit_axes(figure, "reals taken for fakes (false-positive rate)", "fakes found (true-positive rate)")
        axes.plot([0, 1], [0, 1], color=_SOFT, lw=1, ls=(0, (2, 4)))
        _curves(
            axes, groups, lambda d: (d.curve().fpr_T, d.curve().tpr_T), "lower right", lambda d: f"AUC {d.auc():.3f}"
        )
    return out[0]


def precision_recall_plot(groups: Mapping[str, Detections]) -> str:
    """Precision over recall, one curve a group that has both classes; the area below its steps is the AP."""
    with _drawing() as (figure, out):
        axes = _unit_axes(figure, "fakes found (recall)", "fakes among what is called fake (precision)")
        _curves(axes, groups, _steps, "lower left", lambda d: f"AP {d.average_precision():.3f}")
    return out[0]


def _steps(items: Detections) -> tuple[NDArray[Any], NDArray[Any]]:
    """Corners of the steps: each precision holds from the recall before."""
    curve = items.curve()
    return np.repeat(curve.tpr_T, 2)[1:-1], np.repeat(curve.precision_T[1:], 2)


def _curves(
    axes: "Axes",
    groups: Mapping[str, Detections],
    line: Callable[[Detections], tuple[NDArray[Any], NDArray[Any]]],
    place: Literal["lower left", "lower right"],
    said: Callable[[Detections], str],
) -> None:
    for n, (name, items) in enumerate(groups.items()):
        x, y = line(items)
        kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
        colour, dash = _LINES[n % len(_LINES)], _DASHES[n // len(_LINES) % len(_DASHES)]
        axes.plot(x[kept], y[kept], color=colour, ls=dash, lw=1.5 if n else 2.4, label=f"{_short(name)}: {said(items)}")
    axes.legend(loc=place)


def reliability_plot(items: Detections) -> str:
    """How often a score is right: the share of fakes in each bin of scores over their mean, and how many there are."""
    weight_B, mean_B, share_B = items.reliability()
    filled = weight_B > 0
    with _drawing() as (figure, out):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share that is fake")
        upper.plot([0, 1], [0, 1], color=_SOFT, lw=1, ls=(0, (2, 4)))
        upper.vlines(mean_B[filled], mean_B[filled], share_B[filled], color=_LINES[1], lw=1.5, alpha=0.8)
        upper.plot(mean_B[filled], share_B[filled], color=_LINES[0], marker="o", ms=5, lw=1.5)
        edges = np.linspace(0, 1, len(weight_B) + 1)
        lower.bar(edges[:-1], weight_B, np.diff(edges), align="edge", color=_LINES[0], alpha=0.6)
        lower.set(xlabel="score, in bins of equal width", ylabel="videos")
        for axes in (upper, lower):
            axes.grid(visible=True)
            axes.set_axisbelow(True)
        lower.yaxis.get_major_locator().set_params(nbins=3, integer=True)
    return out[0]


def score_histogram(items: Detections, labels_N: NDArray[np.int64], scores_N: NDArray[np.float64]) -> str:
    """How the scores of both classes are spread, and where the threshold lies."""
    with _drawing() as (figure, out):
        axes = figure.add_subplot(xlim=(-0.02, 1.02), xlabel="score", ylabel="share of the class")
        axes.grid(visible=True, axis="y")
        axes.set_axisbelow(True)
        edges = np.linspace(0, 1, _BINS + 1)
        for label, colour, name in ((0, _REAL, "real"), (1, _FAKE, "fake")):
            counts, _ = np.histogram(scores_N[labels_N == label], edges)
            if not counts.sum():
                continue
            share = counts / counts.sum()
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.28)
            axes.stairs(share, edges, color=colour, lw=1.8, ls="-" if label else "--", label=f"{name} ({counts.sum()})")
        axes.axvline(items.threshold, color=_INK, lw=1.2, ls=(0, (4, 3)), label=f"threshold {items.threshold:.3g}")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return out[0]


def time_plot(
    times_s: Sequence[NDArray[np.float64]],
    scores: Sequence[NDArray[np.float64]],
    names: Sequence[str],
    threshold: float,
) -> str:
    """The scores of one video over time, a line a track; a gap breaks a line (NaN)."""
    with _drawing((4.3, 2.1)) as (figure, out):
        axes = figure.add_subplot(ylim=(-0.04, 1.04), xlabel="seconds", ylabel="score")
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        axes.axhline(threshold, color=_INK, lw=1, ls=(0, (4, 3)))
        for n, (at, score, name) in enumerate(zip(times_s, scores, names, strict=True)):
            axes.plot(at, score, color=_LINES[n % len(_LINES)], marker="o", ms=3, lw=1.4, label=name)
        if len(names) > 1:
            axes.legend(loc="best", ncols=2)
    return out[0]


def robustness_plot(clean: float | None, rows: Sequence[tuple[str, Sequence[float | None]]], metric: str) -> str:
    """The metric over the severity, a line a perturbation; severity 0 is the crops as they are."""
    with _drawing((4.3, 4.6)) as (figure, out):
        axes = figure.add_subplot(xlabel="severity (0: as it is)", ylabel=metric)
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        for n, (name, values) in enumerate(rows):
            line = np.array([np.nan if v is None else v for v in (clean, *values)])
            axes.plot(
                line, color=_LINES[n % len(_LINES)], ls=_DASHES[n % 2], marker="os^D"[n % 4], ms=4, lw=1.6, label=name
            )
        axes.set_xticks(range(1 + max((len(v) for _, v in rows), default=0)))
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)
    return out[0]


def deletion_plot(shares: Sequence[float], drops: Mapping[str, NDArray[np.float64]], output: str = "logit") -> str:
    """How far the output falls over the share of pixels painted over, a line a way of choosing them."""
    with _drawing() as (figure, out):
        axes = figure.add_subplot(xlabel="share of the face painted over", ylabel=f"mean drop of the {output}")
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        for n, (name, values) in enumerate(drops.items()):
            axes.plot(shares, values, color=_LINES[n], ls=_DASHES[n], marker="os^"[n % 3], ms=4, lw=1.8, label=name)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return out[0]


def opinion_plot(sets: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> str:
    """Predicted over given opinion scores, a mark a test set."""
    with _drawing() as (figure, out):
        axes = figure.add_subplot(xlabel="mean opinion score", ylabel="predicted")
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        every = np.concatenate([values for pair in sets.values() for values in pair])
        ends = [every.min(), every.max()]
        axes.plot(ends, ends, color=_SOFT, lw=1, ls=(0, (2, 4)))
        for n, (name, (mos, predicted)) in enumerate(sets.items()):
            axes.plot(
                mos, predicted, "os^D"[n % 4], color=_LINES[n % len(_LINES)], ms=4, alpha=0.75, label=_short(name)
            )
        axes.legend()
    return out[0]


def _short(name: str) -> str:
    # A name with $ would be taken for a formula.
    name = name.replace("$", r"\$")
    return name if len(name) <= 24 else f"{name[:23]}…"
