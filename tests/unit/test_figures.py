"""Plots are whole SVG files that follow the reader's scheme and fetch nothing."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest

from train import figures
from unmask.metrics import Detections

LABELS = np.arange(40) % 2
SCORES = np.clip(np.random.default_rng(0).normal(0.35 + 0.3 * LABELS, 0.2), 0, 1)
ITEMS = Detections(SCORES, LABELS, threshold=0.45)
HOSTILE = "$\\frac{<script>&\u202e\u6570\u636e"

PLOTS: dict[str, Callable[[], str]] = {
    "roc": lambda: figures.roc_plot({"all videos": ITEMS, HOSTILE: ITEMS, "x" * 99: ITEMS}),
    "precision_recall": lambda: figures.precision_recall_plot({"all videos": ITEMS}),
    "reliability": lambda: figures.reliability_plot(ITEMS),
    "histogram": lambda: figures.score_histogram(ITEMS, LABELS, SCORES),
    "time": lambda: figures.time_plot(
        [np.array([0.0, 1.0, np.nan, 3.0]), np.array([2.0])], [np.array([0.1, 0.9, np.nan, 0.5]), np.array([0.2])],
        ["face 1", "face 2"], 0.5,
    ),
    "robustness": lambda: figures.robustness_plot(0.9, [("blur", [0.8, None, 0.7, 0.6]), (HOSTILE, [0.9] * 4)], "AUC"),
    "deletion": lambda: figures.deletion_plot([0.0, 0.5, 1.0], {"map": np.arange(3.0), "pixels": np.zeros(3)}),
    "opinions": lambda: figures.opinion_plot({HOSTILE: (SCORES, SCORES + 0.1), "one": (np.ones(1), np.ones(1))}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_whole_and_follow_the_scheme(name: str) -> None:
    svg = PLOTS[name]()
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert len(list(root.iter())) > 30
    assert "prefers-color-scheme:dark" in svg
    assert "var(--ink)" in svg
    assert not re.search(r"#01020[0-9]", svg)  # no stand-in is left
    assert "<script" not in svg
    links = re.findall(r'(?:href|src)="([^"]*)"', svg)
    assert all(link.startswith("#") for link in links)  # parts of the drawing itself
    assert set(re.findall(r"https?://[^\s\"<]+", svg)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink", "http://www.w3.org/XML/1998/namespace"
    }  # fmt: skip
    assert PLOTS[name]() == svg  # the same each time


def test_plots_with_one_class_or_one_point() -> None:
    reals = np.zeros(3, np.int64)
    assert "svg" in figures.score_histogram(Detections([0.1, 0.2, 0.2], reals), reals, np.array([0.1, 0.2, 0.2]))
    assert "svg" in figures.reliability_plot(Detections([0.5, 0.5], [0, 1]))
    assert "svg" in figures.robustness_plot(None, [("blur", [None] * 5)], "AUC")
