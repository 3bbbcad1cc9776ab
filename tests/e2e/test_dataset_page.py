"""The page about a dataset in a real browser: it obeys its own policy, fits a phone, and follows the colour scheme."""

import html
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.page import write_page
from tests.e2e.test_report_page import DARK, LIGHT, Browse, browse, violations
from tests.products import BOX, Clip, finished_run
from tests.unit.test_page import HOSTILE, full_run, last_run, seen, unseen
from unmask.products import Products
from unmask.storage import Store

__all__ = ["browse"]

# As in the test of the report: the page stands in a frame as wide as a phone.
HARNESS = """<!doctype html><body style="margin:0">
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const all = [...page.body.querySelectorAll("*")];
  const skip = page.querySelector(".skip");
  skip.focus();
  const facts = {{
    scrollWidth: root.scrollWidth, clientWidth: root.clientWidth,
    background: getComputedStyle(page.body).backgroundColor,
    wide: all.filter((e) => !e.closest("svg,.scroll,.skip,thead")
      && e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.outerHTML.slice(0, 80)),
    unreachable: all.filter((e) => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0
      && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)).map((e) => e.outerHTML.slice(0, 80)),
    dangling: [...page.querySelectorAll("a")].filter((a) => !page.querySelector(a.getAttribute("href"))).length,
    links: page.querySelectorAll("a").length, skip: skip.getBoundingClientRect().left,
    broken: [...page.images].filter((image) => !image.naturalWidth).length, images: page.images.length,
  }};
  const out = document.createElement("output");
  out.textContent = JSON.stringify(facts);
  document.body.append(out);
}});
</script>"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of a dataset with all that can come up."""
    store = Store(tmp_path / "run")
    full_run(store)
    clips = [
        seen("original/one", label=0, method="original", width=1920, height=1080, duration_s=12.5),
        seen("deepfakes/one_two", label=1, method="Deepfakes"),
        seen(HOSTILE, faces=1, label=1, method=HOSTILE),
        seen("x" * 150, faces=3, label=1, method="y" * 90),
        Clip(video="cut", corrupt=frozenset({10}), status="quarantined", columns={"reason": "decoder_hung"}),
        *(Clip(video=f"clip{n}", faces={0: [BOX], 5: [BOX]}, columns={"label": n % 2}) for n in range(20)),
        unseen("nobody", "empty", "no_face", "nobody.mp4 shows no face."),
        unseen("noise", "failed", "not_a_video", f"{HOSTILE} is not a video; get another copy of it. " + "z" * 150),
        unseen("n" * 200, "failed", "r" * 80, "/data/" + "p" * 200),
    ]
    finished_run(store, clips, per_shard=8)
    write_page(store, Products(store), last_run(40))
    return store.local_path("index.html")


@pytest.mark.parametrize(("width", "scheme"), [(360, LIGHT), (360, DARK), (1280, LIGHT)])
def test_page_fits_and_breaks_no_rule(browse: Browse, page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(width=width, page=html.escape(page.read_text())), encoding="utf-8")
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
    assert facts["images"] == 4 * 8 + 21 * 2
    assert facts["background"] == ("rgb(12, 16, 20)" if scheme == DARK else "rgb(244, 246, 248)")


def test_page_opens_by_itself_in_light_and_dark(browse: Browse, page: Path, tmp_path: Path) -> None:
    brightness = []
    for scheme in (LIGHT, DARK):
        picture = tmp_path / "page.png"
        _, log = browse(page, f"--screenshot={picture}", "--window-size=1280,2400", scheme)
        assert violations(log) == []
        image_HWC = cv2.imread(str(picture))
        assert image_HWC is not None
        assert image_HWC.shape == (2400, 1280, 3)
        assert np.std(image_HWC.astype(np.float32)) > 15
        brightness.append(float(np.median(image_HWC.astype(np.float32))))
    assert brightness[0] > 200
    assert brightness[1] < 60


def test_policy_stops_what_the_page_did_not_bring(browse: Browse, page: Path) -> None:
    page.write_text(page.read_text().replace("</main>", "<script>document.title='owned'</script></main>"))
    dom, log = browse(page, "--dump-dom")
    assert violations(log)  # so the other tests would see a violation
    assert "<title>Faces of run</title>" in dom
