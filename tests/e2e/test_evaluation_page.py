"""The page of an evaluation in a real browser: it obeys its own policy, fits a phone, and follows the colour scheme."""

import html
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.e2e.test_dataset_page import HARNESS
from tests.e2e.test_report_page import DARK, LIGHT, Browse, browse, violations
from tests.evaluated import checkpoint, fitted_model, folder, person_clip
from tests.products import Clip
from train.evaluate import PAGE, app
from unmask.calibration import Calibration

__all__ = ["browse"]

HOSTILE = "\"><script>document.title='owned'</script>&\u202e" + "x" * 90
# Brightness of a plot's letters tells whether it followed the scheme.
LETTERS = """<!doctype html><body style="margin:0;background:{paper}"><img src="{uri}" width="520"></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages with all that can come up: of an ensemble of detectors, and of opinion scores."""
    place = tmp_path_factory.mktemp("evaluated")
    a = checkpoint(place / "frame.safetensors", fitted_model(), calibrated=False, name=HOSTILE)
    b = checkpoint(place / "temporal.safetensors", fitted_model("temporal", seed=1))
    mos = checkpoint(place / "mos.safetensors", fitted_model("temporal", task="mos"), calibration=Calibration())
    about = {"split": "train", "part": "C1"}
    clips = [person_clip(n, n % 2, mos=1 + n / 4, **about, **({"method": HOSTILE} if n == 3 else {})) for n in range(8)]
    lost = Clip(
        video="lost/" + "y" * 150, faces={}, status="failed", columns={**about, "label": 1, "reason": "not_a_video"}
    )
    first = folder(place / ("z" * 60), [*clips, lost])
    second = folder(place / "two", [person_clip(n, n % 2, mos=2 + n / 4, split="train") for n in range(6)])
    data = ["--data", str(first), "--data", str(second), "--split", "train", "--resamples", "20", "--device", "cpu"]
    asked = {
        "detector": ["--model", f"{a}:0.6", "--model", f"{b}:0.4", "--robustness", "--robustness-videos", "2"],
        "mos": ["--model", str(mos)],
    }
    for name, models in asked.items():
        result = CliRunner().invoke(app, [*models, *data, "--heatmaps", "4", "--out", str(place / name)])
        assert result.exit_code == 0, result.output
    return {name: place / name / PAGE for name in asked}


@pytest.mark.parametrize("name", ["detector", "mos"])
@pytest.mark.parametrize(("width", "scheme"), [(360, LIGHT), (360, DARK), (1280, LIGHT)])
def test_page_fits_and_breaks_no_rule(
    browse: Browse, pages: dict[str, Path], tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(width=width, page=html.escape(pages[name].read_text())), encoding="utf-8")
    dom, log = browse(harness, "--dump-dom", "--window-size=1400,1000", scheme)
    assert violations(log) == []
    (output,) = re.findall(r"<output>(\{.*?\})</output>", dom, re.DOTALL)
    facts = json.loads(html.unescape(output))
    assert facts["scrollWidth"] <= facts["clientWidth"] == width
    assert facts["wide"] == []
    assert facts["unreachable"] == []
    assert facts["dangling"] == 0
    assert facts["links"] >= 5
    assert facts["skip"] >= 0
    assert facts["broken"] == 0
    assert facts["images"] >= {"detector": 4 + 6 + 1 + 1 + 2, "mos": 1 + 1 + 2}[name]
    assert facts["background"] == ("rgb(12, 16, 20)" if scheme == DARK else "rgb(244, 246, 248)")


def test_page_opens_by_itself_in_light_and_dark(browse: Browse, pages: dict[str, Path], tmp_path: Path) -> None:
    brightness = []
    for scheme in (LIGHT, DARK):
        picture = tmp_path / "page.png"
        dom, log = browse(pages["detector"], "--dump-dom", f"--screenshot={picture}", "--window-size=1280,2400", scheme)
        assert violations(log) == []
        assert "<title>Evaluation of" in dom
        image_HWC = cv2.imread(str(picture))
        assert image_HWC is not None
        assert np.std(image_HWC.astype(np.float32)) > 12
        brightness.append(float(np.median(image_HWC.astype(np.float32))))
    assert brightness[0] > 200
    assert brightness[1] < 60


def test_plots_follow_the_colour_scheme(browse: Browse, pages: dict[str, Path], tmp_path: Path) -> None:
    uri = re.findall(r'src="(data:image/svg[^"]+)"', pages["detector"].read_text())[0]
    harness, picture = tmp_path / "plot.html", tmp_path / "plot.png"
    extremes = []
    for scheme, paper in ((LIGHT, "#fff"), (DARK, "#000")):
        harness.write_text(LETTERS.format(paper=paper, uri=uri), encoding="utf-8")
        browse(harness, f"--screenshot={picture}", "--window-size=560,500", scheme)
        image_HWC = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
        assert image_HWC is not None
        extremes.append((int(image_HWC.min()), int(image_HWC.max())))
    assert extremes[0][0] < 60  # dark letters on white
    assert extremes[1][1] > 200  # light ones on black


def test_policy_stops_what_the_page_did_not_bring(browse: Browse, pages: dict[str, Path], tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    changed.write_text(pages["mos"].read_text().replace("</main>", "<script>document.title='owned'</script></main>"))
    dom, log = browse(changed, "--dump-dom")
    assert violations(log)  # so the other tests would see a violation
    assert "<title>Evaluation of mos</title>" in dom
