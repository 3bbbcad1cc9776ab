"""The report in a real browser: it obeys its own policy, fits a phone, follows the colour scheme and the keyboard."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.test_report import HOSTILE, make_entry, make_failure, render
from unmask.errors import Reason
from unmask.records import Status, Verdict

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--virtual-time-budget=3000", "--enable-logging=stderr",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
LIGHT = "--blink-settings=preferredColorScheme=1"

# The report stands in a frame as wide as a phone (a headless window has a least width), on the harness's own origin.
HARNESS = """<!doctype html><body style="margin:0">
<iframe style="width:{width}px;height:{height}px;border:0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
  const chart = page.querySelector(".chart[tabindex]"), readout = page.querySelector(".readout");
  const press = (key) => chart.dispatchEvent(new KeyboardEvent("keydown", {{ key }}));
  press("ArrowRight"); press("ArrowRight"); press("End"); press("ArrowLeft");
  const facts = {{
    scrollWidth: root.scrollWidth, clientWidth: root.clientWidth,
    background: getComputedStyle(page.body).backgroundColor,
    wide: [...page.body.querySelectorAll("*")].filter((e) => !e.closest("svg,.scroll,.tall,.hide,.skip")
      && e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.outerHTML.slice(0, 80)),
    readout: readout.textContent, lit: page.querySelectorAll(".strip .lit").length,
    broken: [...page.images].filter((image) => !image.naturalWidth).length, images: page.images.length,
  }};
  press("Escape");
  facts.cleared = page.querySelectorAll(".lit").length;
  const out = document.createElement("output");
  out.textContent = JSON.stringify(facts);
  document.body.append(out);
}});
</script>"""

Browse = Callable[..., tuple[str, str]]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Run Chromium once on a file with a profile of its own; its standard output and error."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on PATH")

    def run(page: Path, *flags: str) -> tuple[str, str]:
        command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as browser:
            try:
                return browser.communicate(timeout=120)
            finally:
                if browser.poll() is None:
                    os.killpg(browser.pid, signal.SIGKILL)

    return run


def full_page() -> str:
    return render(
        make_entry(tracks=2, name="clips/press briefing.mp4"),
        make_entry(0.5, Verdict.INCONCLUSIVE, name=HOSTILE, warnings=(HOSTILE,)),
        make_entry(0.7, Verdict.INCONCLUSIVE, trained=False, name="a" * 180 + ".mp4"),
        make_entry(0.2, Verdict.AUTHENTIC, gap=False),
        make_failure(),
        make_failure(Status.UNSCORED, Reason.NO_FACE),
        command="unmask score " + "x" * 200,
    )


def violations(log: str) -> list[str]:
    return [line for line in log.splitlines() if "Content Security Policy" in line or "Uncaught" in line]


def harness(page: str, folder: Path, width: int, height: int = 900) -> Path:
    path = folder / f"harness{width}.html"
    path.write_text(HARNESS.format(width=width, height=height, page=html.escape(page)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(360, LIGHT), (360, DARK), (1280, LIGHT)])
def test_page_fits_follows_the_keyboard_and_breaks_no_rule(
    browse: Browse, tmp_path: Path, width: int, scheme: str
) -> None:
    dom, log = browse(harness(full_page(), tmp_path, width), "--dump-dom", "--window-size=1400,1000", scheme)
    assert violations(log) == []
    (output,) = re.findall(r"<output>(\{.*?\})</output>", dom, re.DOTALL)
    facts = json.loads(html.unescape(output))
    assert facts["scrollWidth"] <= facts["clientWidth"] == width
    assert facts["wide"] == []
    assert facts["broken"] == 0
    assert facts["images"] > 80
    assert facts["background"] == ("rgb(12, 16, 20)" if scheme == DARK else "rgb(244, 246, 248)")
    times = [frame.pts_s for frame in make_entry(tracks=2).tracks[0].frames]
    assert facts["readout"].startswith(f"{times[-2]:.2f} s, frame ")
    assert facts["lit"] == 1
    assert facts["cleared"] == 0


def test_policy_stops_what_the_report_did_not_bring(browse: Browse, tmp_path: Path) -> None:
    page = full_page().replace("</main>", "<script>document.title='owned'</script><img src='x.png' alt=''></main>")
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    dom, log = browse(path, "--dump-dom")
    assert len(violations(log)) >= 2  # so the other tests would see a violation
    assert "<title>Report</title>" in dom


def test_file_opens_by_itself_in_light_and_dark(browse: Browse, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(full_page(), encoding="utf-8")
    brightness = []
    for scheme in (LIGHT, DARK):
        picture = tmp_path / "page.png"
        _, log = browse(path, f"--screenshot={picture}", "--window-size=1280,2400", scheme)
        assert violations(log) == []
        image_HWC = cv2.imread(str(picture))
        assert image_HWC.shape == (2400, 1280, 3)
        assert np.asarray(image_HWC, np.float32).std() > 15
        brightness.append(float(np.median(image_HWC)))
    assert brightness[0] > 200
    assert brightness[1] < 60
