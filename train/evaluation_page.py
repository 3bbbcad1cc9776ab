"""The page of an evaluation: one HTML file with the numbers, the plots, the mistakes and what a reader must know.

It fetches nothing from anywhere. Its size grows with the numbers of datasets and methods, not of videos.

Axes: N faces.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train import figures
from train.evaluation import Outcome
from train.faithfulness import KINDS, SHARES
from train.findings import Findings
from train.mos_tables import set_of
from train.robustness import CRF
from train.tables import levels
from unmask.explain import METHOD
from unmask.metrics import Detections
from unmask.pages import environment, jpeg_uri, svg_uri
from unmask.scoring import ScoringOptions

__all__ = ["METRICS", "render_page"]

METRICS: Mapping[str, tuple[str, str]] = {
    "auc": ("AUC", "chance that a fake scores above a real item; 0.5 is guessing"),
    "eer": ("EER", "where as many reals are taken for fakes as fakes are missed; less is better"),
    "average_precision": ("AP", "area under precision and recall; depends on how many fakes there are"),
    "tpr_at_fpr_1": ("TPR at 1% FPR", "fakes found while at most 1% of reals are taken for fakes"),
    "tpr_at_fpr_5": ("TPR at 5% FPR", "the same at 5%"),
    "balanced_accuracy": ("Balanced accuracy", "at the model's own threshold; the mean of both classes' shares"),
    "log_loss": ("Log loss", "punishes sure mistakes; less is better, 0.693 is what always saying 0.5 costs"),
    "weighted_log_loss": ("Weighted log loss", "(1.4 of the fakes + that of the reals) / 2"),
    "brier": ("Brier score", "mean squared error of the scores; less is better"),
    "ece": ("ECE", "how far scores are from the shares of fakes, in 15 bins; less is better"),
    "plcc": ("PLCC", "Pearson's correlation of predicted and given opinions"),
    "srcc": ("SRCC", "Spearman's correlation of their ranks"),
    "rmse": ("RMSE", "root mean square error, in points of opinion; less is better"),
    "agreement": ("Mean of both", "of PLCC and SRCC: the score of DFGC-VRA 2023"),
}
"""What the metrics are called, and what they say."""
_GROUP_METRICS = ("auc", "eer", "average_precision", "tpr_at_fpr_5", "balanced_accuracy", "log_loss")
_MISTAKES, _TIMES, _HEATS, _LINES_SHOWN = 10, 6, 12, 6
_PICTURE_PX = 160


def render_page(findings: Findings, document: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        findings: What there is to draw.
        document: What there is to say: the findings' document, with `created` and `command`.
    """
    is_mos = document["task"] == "mos"
    results = document["results"]
    template = environment(Path(__file__).parent).get_template("evaluation.html.jinja")
    return template.render(
        doc=document,
        metrics=METRICS,
        group_metrics=_GROUP_METRICS,
        has_both=not is_mos and results["curves"] is not None,
        tiles=_tiles(results, is_mos=is_mos),
        plots=list(_opinion_plots(findings) if is_mos else _detection_plots(findings)),
        times=[] if is_mos else list(_times(findings)),
        mistakes=_mistakes(document["videos"], is_mos=is_mos, threshold=document["threshold"]),
        lost=[row for row in document["videos"] if row["score"] is None],
        robust_plot=_robustness_plot(findings),
        faithful=_faithful(findings),
        cards=[_card(model) for model in document["models"]],
    )


def _tiles(results: Mapping[str, Any], *, is_mos: bool) -> list[dict[str, Any]]:
    """The numbers that come first."""
    if is_mos:
        found = results["overall"]["metrics"]
        names = ("plcc", "srcc", "rmse")
        first = [{"name": "Mean of PLCC and SRCC over the test sets", "measure": results["challenge"]}]
        return first + [{"name": METRICS[name][0], "measure": found[name]} for name in names]
    found = results["overall"]["video"]["metrics"]
    return [
        {"name": METRICS[n][0], "measure": found[n]} for n in ("auc", "eer", "tpr_at_fpr_5", "balanced_accuracy", "ece")
    ]


def _plot(title: str, svg: str, alt: str, note: str = "") -> dict[str, Any]:
    return {"title": title, "uri": svg_uri(svg), "alt": alt, "note": note}


def _detection_plots(findings: Findings) -> Iterator[dict[str, Any]]:
    options = ScoringOptions(aggregation=findings.document["options"]["aggregation"])
    level = levels(findings.selection, findings.outcomes, options)["video"]
    whole = level.detections(findings.ensemble.threshold)
    both = set(level.labels_N.tolist()) == {0, 1}
    groups: dict[str, Detections] = {"all videos": whole}
    catalogue = findings.selection.catalogue
    datasets = list(dict.fromkeys(catalogue.videos[n].dataset for n in level.videos_N.tolist()))
    if len(datasets) > 1:
        for name in datasets[:_LINES_SHOWN]:
            part = level.of({n for n in level.videos_N.tolist() if catalogue.videos[n].dataset == name})
            if set(part.labels_N.tolist()) == {0, 1}:
                groups[name] = part.detections()
    if both:
        auc, ap = whole.auc(), whole.average_precision()
        yield _plot("ROC", figures.roc_plot(groups), f"ROC curve of the videos, area {auc:.3f}")
        yield _plot(
            "Precision and recall", figures.precision_recall_plot(groups), f"Precision over recall, area {ap:.3f}"
        )
        yield _plot(
            "Reliability",
            figures.reliability_plot(whole),
            f"Share of fakes over the mean score in bins, ECE {whole.ece():.3f}",
            "On the dotted line a score is the share of fakes among the videos that get it. That share is of these "
            "videos: where fakes are rarer, so are they at every score.",
        )
    yield _plot(
        "Scores of both classes",
        figures.score_histogram(whole, level.labels_N, level.scores_N),
        "Histogram of the scores of real and of fake videos",
    )


def _opinion_plots(findings: Findings) -> Iterator[dict[str, Any]]:
    catalogue = findings.selection.catalogue
    sets: dict[str, list[tuple[float, float]]] = {}
    for opinion in findings.opinions:
        video = catalogue.videos[opinion.video]
        if opinion.score is not None and video.about.mos is not None:
            sets.setdefault(set_of(video), []).append((video.about.mos, opinion.score))
    columns = {name: (np.array([m for m, _ in rows]), np.array([s for _, s in rows])) for name, rows in sets.items()}
    yield _plot(
        "Predicted over given opinions",
        figures.opinion_plot(columns),
        "Predicted opinion score of each video over the mean opinion score that people gave",
        "On the dotted line both are the same.",
    )


def _times(findings: Findings) -> Iterator[dict[str, Any]]:
    """The scores over time of some videos: of each class the highest, the middle and the lowest."""
    catalogue = findings.selection.catalogue
    for label in (1, 0):
        own = [o for o in findings.outcomes if o.score is not None and catalogue.videos[o.video].about.label == label]
        ranked = sorted(own, key=lambda o: -(o.score or 0.0))
        wanted = {0, len(ranked) // 2, len(ranked) - 1} if ranked else set()
        for n in sorted(wanted)[: _TIMES // 2]:
            yield _time(findings, ranked[n], label)


def _time(findings: Findings, outcome: Outcome, label: int) -> dict[str, Any]:
    catalogue = findings.selection.catalogue
    tracks = sorted(outcome.tracks, key=lambda track: -outcome.tracks[track][1])[:4]
    lines = [_line(findings, outcome, track) for track in tracks]
    svg = figures.time_plot(
        [at for at, _ in lines],
        [score for _, score in lines],
        [f"face {track}" for track in tracks],
        findings.ensemble.threshold,
    )
    name = catalogue.videos[outcome.video].key
    alt = f"Score over time of {len(outcome.rows_N)} faces, video score {outcome.score:.3f}"
    return {**_plot(name, svg, alt), "label": "fake" if label else "real", "score": outcome.score}


def _line(findings: Findings, outcome: Outcome, track: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times and scores of one track; NaN before each gap."""
    catalogue = findings.selection.catalogue
    own = np.flatnonzero(catalogue.track_N[outcome.rows_N] == track)
    rows_N = outcome.rows_N[own]
    gaps = np.flatnonzero(catalogue.after_gap_N[rows_N])
    gaps = gaps[gaps > 0]
    return np.insert(catalogue.pts_s_N[rows_N], gaps, np.nan), np.insert(outcome.scores_N[own], gaps, np.nan)


def _mistakes(videos: Sequence[Mapping[str, Any]], *, is_mos: bool, threshold: float | None) -> list[dict[str, Any]]:
    """The videos that are farthest off."""
    if is_mos:
        known = [v for v in videos if v["score"] is not None]
        far = sorted(known, key=lambda v: -abs(v["score"] - v["mos"]))
        return [{**v, "off": v["score"] - v["mos"]} for v in far[:_MISTAKES]]
    assert threshold is not None
    wrong = [v for v in videos if v["score"] is not None and (v["score"] >= threshold) != (v["label"] == 1)]
    far = sorted(wrong, key=lambda v: -abs(v["score"] - v["label"]))
    return [{**v, "off": abs(v["score"] - v["label"])} for v in far[:_MISTAKES]]


def _robustness_plot(findings: Findings) -> dict[str, Any] | None:
    robust = findings.robustness
    if robust is None:
        return None
    rows = [(row.title, [m.value for m in row.measures]) for row in robust.rows if row.name != CRF]
    name = METRICS[robust.metric][0]
    alt = f"{name} over the severity of each perturbation"
    return _plot("", figures.robustness_plot(robust.clean.value, rows, name), alt)


def _faithful(findings: Findings) -> dict[str, Any] | None:
    found = findings.faithfulness
    if found is None:
        return None
    catalogue = findings.selection.catalogue
    output = "predicted opinion" if findings.ensemble.is_mos else "logit"
    drops = {title: found.mean_drops(kind) for kind, title in KINDS.items()} if found.probes else {}
    plot = (
        _plot("", figures.deletion_plot(SHARES, drops, output), f"Drop of the {output} as faces are painted over")
        if drops
        else None
    )
    return {
        "plot": plot,
        "kinds": KINDS,
        "method": METHOD,
        "pictures": [
            {
                "video": catalogue.videos[probe.video].key,
                "label": {0: "real", 1: "fake"}.get(catalogue.videos[probe.video].about.label or 0, ""),
                "pts_s": probe.pts_s,
                "logit": probe.logit,
                "crop": jpeg_uri(probe.crop_HWC, _PICTURE_PX),
                "map": jpeg_uri(probe.overlay_HWC, _PICTURE_PX),
            }
            for probe in found.probes[:_HEATS]
        ],
    }


def _card(model: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a model: name and facts, as text."""
    calibration = model["calibration"]
    facts: dict[str, Any] = {
        "Given as": model["given"],
        "Weight": f"{model['weight']:.3g}",
        "Version": model["version"],
        "SHA-256": model["sha256"],
        "Trained": "yes" if model["trained"] else "no: random weights",
        "Architecture": _said(model["architecture"]),
        "Preprocessing": _said(model["preprocessing"]),
    }
    if model["architecture"].get("task") != "mos":
        fitted = f"temperature {calibration['temperature']:.3g}, bias {calibration['bias']:.3g}"
        facts["Calibration"] = f"{fitted}; {calibration['source']}" if calibration["fitted"] else "none"
        low, high = calibration["band"]
        band = f"; no verdict from {low:.3f} to {high:.3f}" if low < high else ""
        facts["Threshold"] = f"{calibration['threshold']:.3f}{band}"
    for name, value in model["provenance"].items():
        facts[name.replace("_", " ").capitalize()] = _said(value)
    return {"name": model["name"], "facts": facts}


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_said(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_said, value)) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
