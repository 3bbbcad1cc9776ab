"""The report holds everything, lets nothing in from outside run, and asks the network for nothing."""

import functools
import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch import nn

from tests import clips
from tests.portraits import filmed
from unmask import report
from unmask.analysis import Analysis, Analyzer
from unmask.checkpoints import Description
from unmask.errors import Reason
from unmask.evidence import FrameEvidence, ReportEntry, TrackEvidence
from unmask.inputs import Source
from unmask.models import ForgeryModel, ModelConfig
from unmask.mtcnn import MTCNN
from unmask.pages import jpeg_uri
from unmask.plan import Sampling
from unmask.records import (
    ErrorInfo,
    FaceQuality,
    FaceScore,
    FrameCount,
    ModelInfo,
    Segment,
    Status,
    Verdict,
    VideoInfo,
    VideoScore,
)
from unmask.report import render_report, write_report
from unmask.transforms import Preprocessing

WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&.mp4"
CARD = {
    "architecture": {"backbone": "mobilenetv3_small_100", "head": "frame"},
    "preprocessing": {"size_px": 224, "margin": 1.3, "mean": [0.485, 0.456, 0.406]},
    "calibration": {"temperature": 1.7, "fitted": True, "note": None},
    "provenance": {"trained_on": list(range(40))},
    "warnings": ["Trained on one dataset only."],
}


@functools.cache
def portrait(seed: int, side: int = 160) -> np.ndarray:
    """The astronaut's face, jittered."""
    top, left = np.random.default_rng(seed).integers((20, 140), (50, 170))
    return np.ascontiguousarray(skimage.data.astronaut()[top : top + side, left : left + side])


def make_track(
    track_id: int, level: float, *, gap: bool = False, n: int = 32, pictures: bool = True
) -> tuple[FaceScore, TrackEvidence]:
    """A face over ten seconds, with nothing between 4 s and 6 s if `gap`."""
    rng = np.random.default_rng(track_id)
    times = [t for t in np.linspace(0.0, 9.9, n) if not (gap and 4.0 < t < 6.0)]
    scores = np.clip(level + 0.12 * np.sin(np.array(times)) + 0.05 * rng.standard_normal(len(times)), 0, 1)
    yy, xx = np.mgrid[:48, :48] / 48
    heat_HW = np.exp(-((yy - 0.6) ** 2 + (xx - 0.5) ** 2) / 0.03).astype(np.float32)
    frames = tuple(
        FrameEvidence(
            float(t),
            round(t * 25),
            float(p),
            portrait(i % 7) if pictures else None,
            heat_HW if pictures else None,
            0.99,
        )
        for i, (t, p) in enumerate(zip(times, scores, strict=True))
    )
    smooth = np.convolve(np.pad(scores, 2, "edge"), np.ones(5) / 5, "valid")
    windows = TrackEvidence(track_id, frames, np.array(times), smooth, np.full(len(times), 0.07))
    segments = (Segment(0.0, 4.0, level), Segment(6.0, 10.0, level)) if gap else (Segment(0.0, 10.0, level),)
    return FaceScore(track_id, level, 0.07, segments), windows


def make_entry(
    level: float = 0.9,
    verdict: Verdict = Verdict.MANIPULATED,
    *,
    name: str = "clips/interview.mp4",
    trained: bool = True,
    tracks: int = 1,
    gap: bool = True,
    pictures: bool = True,
    n: int = 32,
    warnings: tuple[str, ...] = (),
) -> ReportEntry:
    made = [
        make_track(i, max(0.05, level - 0.2 * i), gap=gap and i == 0, pictures=pictures, n=n) for i in range(tracks)
    ]
    model = ModelInfo("mobilenetv3_small_100", "1.2.0", "ab" * 32, trained)
    score = VideoScore(
        id="a1b2", input=name, status=Status.SCORED, verdict=verdict, score=level, calibrated=trained, threshold=0.5,
        model=model, media=VideoInfo("mov,mp4", "h264", "yuv420p", 1920, 1080, 90, 10.0, 250, 25.0),
        faces=tuple(face for face, _ in made), warnings=warnings,
        frames=FrameCount(32, 25, {Reason.NO_FACE: 4, Reason.CORRUPT_FRAME: 2, Reason.FACE_TOO_SMALL: 1}),
        timings_s={"decode": 0.41, "detect": 1.2, "total": 1.8},
    )  # fmt: skip
    return ReportEntry(score, tuple(evidence for _, evidence in made), CARD, (0.42, 0.58), decides=0)


def make_failure(status: Status = Status.FAILED, code: Reason = Reason.TRUNCATED_HEADER) -> ReportEntry:
    error = ErrorInfo(code, "cut.mp4 ends before its index: get the whole file.")
    return ReportEntry(VideoScore("c3", "clips/cut.mp4", status, Verdict.INCONCLUSIVE, error=error))


def render(*entries: ReportEntry, **changes: Any) -> str:
    return render_report(
        entries, **{"title": "Report", "command": "unmask score clips", "created": WHEN, **changes}
    )  # fmt: skip


class Outline(HTMLParser):
    """Checks that elements nest, and gathers tags, ids and text."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        return " ".join(" ".join(data for tag, data in self.texts if tag not in {"style", "script"}).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def plots(page: str) -> list[ET.Element]:
    """Every chart, read by a strict XML parser."""
    found = re.findall(r'<svg class="plot".*?</svg>.*?</svg>', page, re.DOTALL)
    return [ET.fromstring(text) for text in found]


def classes(plot: ET.Element, name: str) -> list[ET.Element]:
    return [node for node in plot.iter() if name in (node.get("class") or "").split()]


def test_everything_asked_for_is_there() -> None:
    outline = Outline(render(make_entry(tracks=2)))
    text = outline.text()
    for wanted in (
        "Manipulated", "0.90", "at or above the threshold of 0.50", "Face track 0", "Face track 1", "with 1 gap",
        "What raised the score", "HiResCAM", "does not prove", "Account of the frames", "25 scored, 7 dropped",
        "no face was found", "no_face", "threshold 0.50",
        "Media facts", "h264, yuv420p", "1920 \u00d7 1080 px, rotated by 90°",
        "Time spent", "Model card: mobilenetv3_small_100", "ab" * 32, "Trained on one dataset only.", "temperature",
        "and 16 more", "unmask score clips", "2026-03-01 12:00:00 UTC",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert all(image.get("alt") is not None for image in outline.named("img"))
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = [attrs[key] for _, attrs in outline.tags for key in ("aria-labelledby",) if key in attrs]
    assert {name for reference in references for name in (reference or "").split()} <= set(ids)
    assert {(a["href"] or "").removeprefix("#") for a in outline.named("a")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_chart_draws_every_frame_segment_gap_and_limit() -> None:
    entry = make_entry(tracks=2)
    first, second = plots(render(entry))
    assert len(classes(first, "mean")) == 2
    assert len(classes(first, "spread")) == 2
    (gap,) = classes(first, "gap")
    assert gap.get("x") == "40.000%"
    assert gap.get("width") == "20.000%"
    assert len(classes(second, "mean")) == 1
    assert classes(second, "gap") == []
    for plot, track in zip((first, second), entry.tracks, strict=True):
        dots = classes(plot, "dot")
        assert len(dots) == len(track.frames)
        assert [float(dot.get("cy", "")) for dot in dots] == pytest.approx(
            [200 * (1 - f.score) for f in track.frames], abs=0.01
        )
        assert all("score" in (dot.findtext("title") or "") for dot in dots)
        over = [frame for frame in track.frames if frame.score >= 0.5]
        assert len(classes(plot, "over")) == len(over)
        assert classes(plot, "limit")[0].get("y1") == "100.00"
        band = classes(plot, "abstain")[0]
        assert (float(band.get("y", "")), float(band.get("height", ""))) == pytest.approx((84.0, 32.0))
        assert [t.text for t in plot.iter("text")][:4] == ["0", "0.5", "1", "0 s"]
    # No point of a line lies inside the gap, and the line passes through its windows.
    for line in classes(first, "mean"):
        xs = [float(point.split(",")[0]) for point in line.get("points", "").split()]
        assert not any(41 < x < 59 for x in xs)
    times = [time for time in entry.tracks[0].times_s_W if time <= 4]
    assert len(classes(first, "mean")[0].get("points", "").split()) == len(times)


def test_a_band_without_width_is_no_band() -> None:
    entry = make_entry()
    page = render(ReportEntry(entry.score, entry.tracks, CARD, (0.5, 0.5)))
    assert classes(plots(page)[0], "abstain") == []
    assert "no band" in Outline(page).text()


def test_face_without_evidence_is_drawn_from_its_segments() -> None:
    entry = make_entry()
    (plot,) = plots(render(ReportEntry(entry.score)))
    assert len(classes(plot, "flat")) == 2
    assert classes(plot, "dot") == []


def test_how_well_a_face_can_be_seen_is_said() -> None:
    known = FaceQuality(side_px=181.6, sharpness=0.614, yaw_deg=12.3, pitch_deg=4.0, roll_deg=1.0)
    for quality, said in ((known, "sharpness 0.61"), (replace(known, sharpness=None), "sharpness not measured")):
        face = FaceScore(0, 0.4, 0.1, (Segment(0.0, 1.0, 0.4),), quality)
        score = VideoScore("d", "x.mp4", Status.SCORED, Verdict.AUTHENTIC, 0.4, faces=(face,))
        expected = f"182 px across, {said}, turned 12° aside, 4° up or down, tilted 1°"
        assert expected in Outline(render(ReportEntry(score))).text()


def test_one_window_in_a_segment_is_still_visible() -> None:
    face = FaceScore(0, 0.4, 0.1, (Segment(1.0, 2.0, 0.4),))
    frames = (FrameEvidence(1.0, 25, 0.4), FrameEvidence(1.9, 48, 0.4))
    track = TrackEvidence(0, frames, np.array([1.0]), np.array([0.4]), np.array([0.1]))
    score = VideoScore("d", "x.mp4", Status.SCORED, Verdict.AUTHENTIC, 0.4, faces=(face,))
    (plot,) = plots(render(ReportEntry(score, (track,))))
    xs = [float(point.split(",")[0]) for point in classes(plot, "mean")[0].get("points", "").split()]
    assert xs[1] - xs[0] > 1


def test_short_appearance_in_a_long_video_gets_its_own_axis() -> None:
    media = VideoInfo("mov", "h264", "yuv420p", 640, 480, 0, 7200.0, 180000, 25.0)
    face = FaceScore(0, 0.4, 0.1, (Segment(3600.0, 3605.0, 0.4),))
    score = VideoScore("d", "x.mp4", Status.SCORED, Verdict.AUTHENTIC, 0.4, media=media, faces=(face,))
    (plot,) = plots(render(ReportEntry(score)))
    xs = [float(point.split(",")[0]) for point in classes(plot, "mean")[0].get("points", "").split()]
    assert xs[1] - xs[0] > 60
    assert "3600 s" in [text.text for text in plot.iter("text")]


def test_most_suspicious_first_then_unscored_then_failed() -> None:
    unscored = make_failure(Status.UNSCORED, Reason.NO_FACE)
    page = render(
        make_failure(), make_entry(0.2, Verdict.AUTHENTIC, name="calm.mp4"), unscored, make_entry(name="loud.mp4")
    )
    outline = Outline(page)
    words = [re.sub(r"\s", "", "".join(t)) for t in re.findall(r'class="word">.*?</svg>(.*?)</p>', page, re.DOTALL)]
    assert words == ["Manipulated", "Authentic", "Notscored", "Failed"]
    assert "truncated_header" in outline.text()
    assert "get the whole file" in outline.text()
    assert "All 4 videos" in outline.text()
    assert len(re.findall(r"<article", page)) == 4
    assert page.count("Model card:") == 1


def test_a_failure_never_reads_as_a_verdict() -> None:
    for entry in (make_failure(), make_failure(Status.UNSCORED, Reason.NO_FACE)):
        page = render(entry)
        article = page[page.index("<article") : page.index("</article>")]
        assert 'class="verdict none"' in article
        assert "nothing about whether the video is real" in article
        assert "Authentic" not in article


def test_inconclusive_says_why_and_is_set_apart() -> None:
    in_band = Outline(render(make_entry(0.5, Verdict.INCONCLUSIVE))).text()
    assert "lies between 0.42 and 0.58, where this model gives no verdict" in in_band
    assert "Inconclusive is not a finding of authenticity." in in_band
    page = render(make_entry(0.7, Verdict.INCONCLUSIVE, warnings=("The windows disagree.",)))
    assert 'class="verdict inconclusive"' in page
    assert page.count("<p>The windows disagree.</p>") == 1
    assert "<li>The windows disagree.</li>" not in page
    assert "too thin or too uneven" in Outline(render(make_entry(0.7, Verdict.INCONCLUSIVE))).text()


def test_untrained_model_is_announced_loudly() -> None:
    notice = "These weights are random; the score means nothing."
    page = render(make_entry(0.7, Verdict.INCONCLUSIVE, trained=False))
    assert Outline(page).text().count(notice) == 3  # on top, at the score, on the card
    assert 'class="big num void"' in page
    assert classes(plots(page)[0], "over") == []
    assert notice not in render(make_entry())


def test_strings_from_outside_cannot_become_markup() -> None:
    hostile = make_entry(name=HOSTILE, warnings=(HOSTILE,))
    entry = ReportEntry(hostile.score, hostile.tracks, {HOSTILE: {HOSTILE: HOSTILE}}, heatmap_method=HOSTILE)
    page = render(entry, entry, title=HOSTILE, command=HOSTILE)
    outline = Outline(page)
    assert "onerror" not in {key for _, attrs in outline.tags for key in attrs}
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in outline.named("img"))
    assert HOSTILE in "".join(data for _, data in outline.texts)
    assert len(outline.named("script")) == 3
    assert len(plots(page)) == 2


def test_json_of_each_result_reads_back() -> None:
    entry = make_entry(name=HOSTILE)
    page = render(entry)
    (data,) = re.findall(r'<script type="application/json" class="result">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data) == json.loads(json.dumps(entry.score.to_json()))
    assert "<" not in data
    (shown,) = [data for tag, data in Outline(page).texts if tag == "pre"]
    assert json.loads(shown) == json.loads(data)


def test_json_holds_no_infinity() -> None:
    media = VideoInfo("mov", "h264", "yuv420p", 64, 48, 0, float("inf"), 3, float("nan"))
    face = FaceScore(0, 0.4, 0.1, (Segment(0.0, 1.0, 0.4),))
    score = VideoScore("d", "x.mp4", Status.SCORED, Verdict.AUTHENTIC, 0.4, media=media, faces=(face,))
    page = render(ReportEntry(score))
    (data,) = re.findall(r'class="result">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data, parse_constant=lambda name: pytest.fail(name))["media"]["duration_s"] is None
    assert len(plots(page)) == 1


def test_characters_that_hide_or_reorder_text_are_spelled_out(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, [make_entry(name="innocent\u202e4pm.exe\x00\udcff.mp4")], command="unmask score x", created=WHEN)
    text = Outline(path.read_text(encoding="utf-8")).text()
    assert "innocent\\u202e4pm.exe\\x00\\udcff.mp4" in text


def test_nothing_is_fetched() -> None:
    page = render(make_entry(tracks=2), make_failure(), make_entry(0.2, Verdict.AUTHENTIC))
    assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.|@import|url\((?!#)|\bfetch\(|XMLHttpRequest|srcset", page)
    outline = Outline(page)
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in outline.tags}
    assert all((link["href"] or "") == "data:," for link in outline.named("link"))
    policy = next(meta["content"] or "" for meta in outline.named("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not any("style" in attrs or any(key.startswith("on") for key in attrs) for _, attrs in outline.tags)


def test_size_stays_bounded() -> None:
    one = len(render(make_entry(tracks=2, n=2000)))
    assert one < 1_600_000
    assert render(make_entry(n=2000)).count('<li data-t="') == 40
    crowd = [make_entry(0.5, name=f"{i}.mp4", n=8) for i in range(220)]
    page = render(*crowd)
    assert page.count('<li data-t="') <= 1500
    assert len(page) < 18_000_000


def test_strip_keeps_the_most_suspicious_and_the_order_of_time() -> None:
    entry = make_entry(n=400)
    frames = entry.tracks[0].frames
    page = render(entry)
    shown = [float(t) for t in re.findall(r'<li data-t="([\d.]+)"', page)]
    assert shown == sorted(shown)
    worst = sorted(frames, key=lambda frame: -frame.score)[:6]
    assert {round(frame.pts_s, 4) for frame in worst} <= set(shown)
    assert "40 of " in Outline(page).text()
    assert page.count('alt="Heat map over the same face"') == 6


def test_crowd_of_faces_is_listed() -> None:
    page = render(make_entry(0.9, tracks=15, pictures=False))
    assert len(plots(page)) == 12
    assert "3 more faces" in Outline(page).text()


def headings(page: str) -> list[str]:
    return re.findall(r"<h3[^>]*>(Face track \d+)</h3>", page)


def posters(page: str) -> list[str]:
    return re.findall(r'<td role="cell" class="thumb"><img src="([^"]+)"', page)


def with_stray(decides: int = 0) -> ReportEntry:
    """Track 0 decides; 1 is more suspicious but too short to decide; 2 was seen once, and is the most suspicious."""
    (face, track), (louder_face, louder_track) = make_track(0, 0.6), make_track(1, 0.8, n=3)
    colour_HWC = np.full((64, 64, 3), (255, 0, 255), np.uint8)
    stray = FrameEvidence(0.16, 4, 0.97, colour_HWC, np.ones((8, 8), np.float32), 0.71)
    once = TrackEvidence(2, (stray,), np.array([0.16]), np.array([0.97]), np.zeros(1))
    score = VideoScore(
        "s", "s.mp4", Status.SCORED, Verdict.MANIPULATED, 0.6, threshold=0.5,
        faces=(FaceScore(2, 0.97, 0.5, (Segment(0.16, 0.2, 0.97),)), face, louder_face),
    )  # fmt: skip
    return ReportEntry(score, (once, track, louder_track), decides=decides)


def test_the_track_that_decides_comes_first_and_strays_last() -> None:
    page = render(with_stray())
    assert headings(page) == ["Face track 0", "Face track 1", "Face track 2"]
    assert page.index("decides the video") < page.index('id="video-1-t1"')
    assert page.count("decides the video") == 1
    page = render(with_stray(decides=1))
    assert headings(page) == ["Face track 1", "Face track 0", "Face track 2"]
    assert page.index("decides the video") < page.index('id="video-1-t0"')


def test_the_picture_of_a_video_is_of_the_track_that_decides() -> None:
    entry = with_stray()
    worst = max(entry.tracks[1].frames, key=lambda frame: frame.score)
    first, _ = posters(render(entry, make_entry(0.2, Verdict.AUTHENTIC)))
    assert worst.crop_HWC is not None
    assert first == jpeg_uri(worst.crop_HWC, 112)
    first, _ = posters(render(with_stray(decides=2), make_entry(0.2, Verdict.AUTHENTIC)))
    assert entry.tracks[0].frames[0].crop_HWC is not None
    assert first == jpeg_uri(entry.tracks[0].frames[0].crop_HWC, 112)


def test_a_score_just_below_the_threshold_does_not_read_as_equal_to_it() -> None:
    entry = make_entry(0.496, Verdict.AUTHENTIC)
    assert "scores 0.496, below the threshold of 0.500" in Outline(render(replace(entry, abstain=None))).text()
    low = make_entry(0.416, Verdict.AUTHENTIC)
    assert "scores 0.416, below the band without a verdict, 0.420 to 0.580" in Outline(render(low)).text()


class Pools(nn.Module):
    """A backbone like timm's, over patches of 8 px; its last features form a grid, or no longer do."""

    def __init__(self, *, grid: bool) -> None:
        super().__init__()
        self.patches, self.grid = nn.Conv2d(3, 6, 8, 8), grid

    def forward_features(self, crops_N3HW: torch.Tensor) -> torch.Tensor:
        features_NChw: torch.Tensor = self.patches(crops_N3HW)
        return features_NChw if self.grid else features_NChw.mean((2, 3))

    def forward(self, crops_N3HW: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.forward_features(crops_N3HW)
        return features.mean((2, 3)) if self.grid else features


def analysed(path: Path, *, grid: bool) -> Analysis:
    torch.manual_seed(0)
    config = ModelConfig(backbone="pools")
    model = ForgeryModel(config, Pools(grid=grid), 6)
    description = Description(name="pools", version="1", config=config, preprocessing=Preprocessing(size_px=64))
    return Analyzer(model, description, MTCNN()).analyze(Source(str(path)), Sampling(frames=6), evidence=True)


def test_a_model_without_heat_maps_still_scores_and_says_so(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "face", clips.ENCODINGS[0], images=filmed(12), width=320, height=240)
    explained, plain = analysed(path, grid=True), analysed(path, grid=False)
    assert plain.score.status is Status.SCORED
    assert plain.score.score == pytest.approx(explained.score.score)
    assert plain.score.warnings[:-1] == explained.score.warnings
    assert plain.score.warnings[-1].startswith("Heat maps are left out: Pools gives features of shape")
    kept, bare = ([frame for track in tracks for frame in track.frames] for tracks in (explained.tracks, plain.tracks))
    assert [frame.pts_s for frame in kept] == [frame.pts_s for frame in bare]
    assert all(frame.heatmap_HW is not None for frame in kept)
    assert all(frame.heatmap_HW is None and frame.crop_HWC is not None for frame in bare)
    entry = plain.report_entry()
    assert entry.decides == entry.score.faces[0].track_id
    assert entry.score.faces[0].score == entry.score.score
    page = render(entry)
    assert "Heat maps are left out" in Outline(page).text()
    assert "What raised the score" not in page


def test_a_face_seen_once_takes_a_line() -> None:
    page = render(with_stray())
    assert len(plots(page)) == 2
    assert "seen once, at 0.16 s, score \u25b2 0.97 frame 4, face detector 0.71" in Outline(page).text()
    stray = page[page.index('class="track once"') :]
    stray = stray[: stray.index("</section>")]
    assert stray.count("<img") == 1
    assert "Heat map" not in stray
    page = render(with_stray(decides=2))
    assert headings(page)[0] == "Face track 2"
    assert len(plots(page)) == 2


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    rgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(scheme: int) -> None:
    roots = re.findall(r":root\{(.*?)\}", render(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z0-9-]+):(#[0-9a-f]{3,6})\b", roots[scheme]))
    grounds = ["bg", "card", "maybe-bg", "bad-bg", "ok-bg", "none-bg"]
    pairs = [(text, ground) for text in ("ink", "soft") for ground in grounds]
    pairs += [(tone, f"{tone}-bg") for tone in ("bad", "ok", "maybe", "none")]
    pairs += [("link", "card"), ("link", "bg"), ("bad", "card")]
    for text, ground in pairs:
        low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_no_videos_at_all() -> None:
    assert "nothing to look at" in Outline(render()).text()


def test_every_reason_has_a_phrase() -> None:
    for code in Reason:
        assert report._PHRASES[code]


def test_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")

    def broken(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", broken)
        with pytest.raises(OSError, match="No space"):
            write_report(path, [make_entry()], command="unmask score x")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file"):
        write_report(tmp_path / "absent" / "report.html", [], command="unmask score x")
    write_report(path, [make_entry()], command="unmask score x")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: FrameEvidence(float("nan"), 0, 0.5), "finite time"),
        (lambda: FrameEvidence(0.0, 0, 1.5), "score in"),
        (lambda: FrameEvidence(0.0, 0, 0.5, np.zeros((4, 4), np.uint8)), "a crop is uint8"),
        (lambda: FrameEvidence(0.0, 0, 0.5, None, np.zeros((4, 4), np.float32)), "lies over a crop"),
        (lambda: TrackEvidence(0, (), np.zeros(3), np.zeros(2), np.zeros(3)), "one shape"),
        (lambda: TrackEvidence(0, (), np.zeros(1), np.array([np.nan]), np.zeros(1)), "finite numbers"),
        (lambda: TrackEvidence(0, (FrameEvidence(1.0, 1, 0.5), FrameEvidence(0.0, 0, 0.5))), "order of time"),
        (lambda: ReportEntry(make_failure().score, (TrackEvidence(7, ()),)), "tracks \\[7\\]"),
        (lambda: ReportEntry(make_entry().score, decides=7), "track 7 cannot decide"),
        (lambda: ReportEntry(make_failure().score, abstain=(0.6, 0.4)), "low before high"),
        (lambda: ReportEntry(make_failure().score, thumbnail_HWC=np.zeros((2, 2, 4), np.uint8)), "a thumbnail"),
    ],
)
def test_evidence_checks_itself(build: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build()
