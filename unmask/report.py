"""The report: one HTML file that a person can read, print, mail and check, with nothing to fetch from anywhere.

`write_report` takes one `ReportEntry` a video: its result as `--json` prints it, and the evidence behind it. Charts are
SVG drawn here, pictures are data URIs, the style and the one script are admitted by their digests in the page's own
content security policy. Every string from outside (file names above all) is escaped by the template, and characters
that would hide or reorder text are spelled out.

Axes: H rows, W columns, C = 3 channels in RGB order.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from unmask.atomic import replacing
from unmask.chart import draw_chart, end_of_time_s
from unmask.errors import Reason
from unmask.evidence import FrameEvidence, ReportEntry, TrackEvidence, fair_choice
from unmask.explain import overlay
from unmask.pages import environment, fitted, jpeg_uri
from unmask.records import FaceScore, Status, Verdict, VideoScore

__all__ = ["render_report", "write_report"]

_THUMBNAIL_PX = 112
_HEAT_PX = 176
_STRIP_FACES = 40
_HEAT_FACES = 6
_TRACKS_SHOWN = 12
_PICTURES = 1500  # faces in the strips of a whole report: with their heat maps about 14 MB

_PHRASES: Mapping[Reason, str] = {
    Reason.MISSING_FILE: "the file does not exist",
    Reason.EMPTY_FOLDER: "the folder holds no video",
    Reason.EMPTY_FILE: "the file holds no bytes",
    Reason.UNREADABLE_FILE: "the file could not be read",
    Reason.NOT_A_VIDEO: "the file is not a video",
    Reason.TRUNCATED_HEADER: "the file was cut off before its index, so nothing in it can be found",
    Reason.NO_VIDEO_STREAM: "the file holds no pictures, only sound or data",
    Reason.UNSUPPORTED_CODEC: "the video is coded in a way that no installed decoder reads",
    Reason.HTTP_STATUS: "the server refused the address",
    Reason.HTTP_TIMEOUT: "the server did not answer in time",
    Reason.HTTP_UNREACHABLE: "the server could not be reached",
    Reason.TOO_LARGE: "the input is larger than allowed",
    Reason.STREAM_AUTH_FAILED: "the source refused the user or password",
    Reason.STREAM_TLS_CERTIFICATE: "the source's certificate could not be verified",
    Reason.STREAM_TIMEOUT: "the source did not answer in time",
    Reason.STREAM_NOT_FOUND: "the source knows no such stream",
    Reason.STREAM_UNREACHABLE: "the source could not be reached",
    Reason.STREAM_CODEC_UNSUPPORTED: "the stream is coded in a way that no installed decoder reads",
    Reason.STREAM_DISCONNECTED: "the connection to the source was lost",
    Reason.STREAM_STALLED: "the source sent nothing for too long",
    Reason.MEDIA_UNREADABLE: "what the source sent is not video",
    Reason.ADDRESS_REFUSED: "the address lies in a network that is not allowed",
    Reason.RESOLUTION_CHANGED: "the size of the pictures changed",
    Reason.MODEL_CHANGED: "another model took over",
    Reason.SESSION_LOST: "the process that scored the stream was lost",
    Reason.QUEUE_FULL: "newer frames took its place in the queue",
    Reason.STALE_FRAME: "it was too old when its turn came",
    Reason.OUT_OF_ORDER: "its time was not after that of the frame before",
    Reason.SCORER_FAILED: "the scorer failed on it",
    Reason.NO_FRAMES: "no frame could be decoded",
    Reason.NO_FACE: "no face was found",
    Reason.NO_USABLE_FACE: "faces were found, but none could be used",
    Reason.DECODE_FAILED: "the decoder gave up on it",
    Reason.CORRUPT_FRAME: "the picture is damaged",
    Reason.MISSING_FRAME: "the file promises it and does not hold it",
    Reason.FRAME_TOO_SMALL: "the picture is too small to hold a usable face",
    Reason.FACE_TOO_SMALL: "the face is too small to judge",
    Reason.DEPTH_FAILED: "the face's depth map says nothing",
    Reason.BAD_OPTION: "an option was wrong",
    Reason.UNKNOWN_MODEL: "the model is not known",
    Reason.PRETRAINED_UNAVAILABLE: "the pretrained weights could not be had",
    Reason.CHECKPOINT_CORRUPT: "the model file is damaged",
    Reason.CHECKPOINT_HASH: "the model file is not the one its description names",
    Reason.CHECKPOINT_VERSION: "the model file has a version that this release does not read",
    Reason.DEVICE_UNAVAILABLE: "the device asked for is not there",
    Reason.DECODER_CRASHED: "it made the decoder crash, twice",
    Reason.DECODER_HUNG: "it made the decoder hang, twice",
    Reason.STORAGE: "a folder or bucket could not be read or written",
    Reason.WORKER_LOST: "the process that worked on it died each time",
    Reason.TRAINING_STOPPED: "a run of training could not go on",
    Reason.INTERNAL: "an error inside Unmask",
    Reason.INTERRUPTED: "the run was stopped",
}


def write_report(
    path: str | Path,
    entries: Iterable[ReportEntry],
    *,
    title: str = "Are these videos real?",
    command: str,
    created: datetime | None = None,
) -> None:
    """Write the report whole, or not at all.

    Args:
        path: Where the HTML file goes; its folder must exist.
        entries: The videos in any order; the report puts the most suspicious first.
        title: The page's heading.
        command: The command line that was run, printed for the record.
        created: When, with a time zone; now if None.

    Raises:
        OSError: The file cannot be written there.
    """
    page = render_report(entries, title=title, command=command, created=created or datetime.now(UTC))
    with replacing(Path(path)) as part:
        # A file name's bytes that are no UTF-8 are lone surrogates in Python, which no encoder takes.
        part.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def render_report(entries: Iterable[ReportEntry], *, title: str, command: str, created: datetime) -> str:
    """The page as text. Arguments as in `write_report`."""
    ranked = sorted(entries, key=_rank)
    shown = sum(min(len(entry.score.faces), _TRACKS_SHOWN) for entry in ranked)
    pictures = min(_STRIP_FACES, max(1, _PICTURES // max(shown, 1)))
    purse = iter(range(_PICTURES // pictures))
    videos = [_video(number, entry, pictures, purse) for number, entry in enumerate(ranked, 1)]
    cards = {_card_key(entry): entry for entry in reversed(ranked) if entry.score.model is not None}
    return _environment().get_template("report.html.jinja").render(
        title=title,
        command=command,
        created=created,
        videos=videos,
        cards=[{"model": e.score.model, "entry": e, "card": e.model_card} for e in reversed(cards.values())],
        tally=[(verdict, sum(_headline(e.score) == verdict for e in ranked)) for verdict in _HEADLINES],
        untrained=any(entry.is_untrained for entry in ranked),
    )  # fmt: skip


# --- one video ------------------------------------------------------------------------------------------------------

_HEADLINES = ("manipulated", "inconclusive", "authentic", "not scored", "failed")


def _headline(score: VideoScore) -> str:
    """The one word on the badge. A failure is never shown as a verdict."""
    return {Status.UNSCORED: "not scored", Status.FAILED: "failed"}.get(score.status, score.verdict.value)


def _rank(entry: ReportEntry) -> tuple[int, float]:
    """Scored videos first, the most suspicious of them in front."""
    order = (Status.SCORED, Status.UNSCORED, Status.FAILED)
    return order.index(entry.score.status), -(entry.score.score or 0.0)


def _card_key(entry: ReportEntry) -> str:
    return json.dumps([str(entry.score.model), entry.model_card], sort_keys=True, default=str)


def _video(number: int, entry: ReportEntry, pictures: int, purse: Iterator[int]) -> dict[str, Any]:
    """What the template says of one video. Each track with pictures takes one coin from `purse`."""
    score = entry.score
    faces = entry.faces
    end_s = end_of_time_s(score, entry.tracks)
    return {
        "anchor": f"video-{number}",
        "entry": entry,
        "score": score,
        "name": score.input.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or score.input,
        "headline": _headline(score),
        "findings": _findings(entry),
        "remarks": () if score.status is Status.SCORED and score.verdict is Verdict.INCONCLUSIVE else score.warnings,
        "deciding": next((face for face, _ in faces if face.track_id == entry.decides), None),
        "poster": _poster(entry),
        "tracks": [
            _track(entry, face, track, end_s, pictures if next(purse, None) is not None else 0)
            for face, track in faces[:_TRACKS_SHOWN]
        ],
        "other_faces": [face for face, _ in faces[_TRACKS_SHOWN:]],
        "account": _account(score),
        "json": score.to_json(),
    }


def _findings(entry: ReportEntry) -> list[str]:
    """The verdict in plain sentences, with its limits."""
    score = entry.score
    if score.error is not None and score.status is not Status.SCORED:
        start = "Could not be analysed" if score.status is Status.FAILED else "Read, but nothing in it could be scored"
        return [f"{start}: {_PHRASES[score.error.code]}.", "That says nothing about whether the video is real."]
    assert score.score is not None
    if score.verdict is Verdict.MANIPULATED:
        said = "" if score.threshold is None else f", at or above the threshold of {score.threshold:.3f}"
        return [f"The face that decides scores {score.score:.3f}{said}.", "A score is evidence, not proof."]
    if score.verdict is Verdict.AUTHENTIC:
        return [
            f"The face that decides scores {score.score:.3f}{_below(entry)}.",
            "The model found no manipulation of a kind it knows. That does not prove that the video is genuine.",
        ]
    return [*_why_inconclusive(entry, score.score), "Inconclusive is not a finding of authenticity."]


def _below(entry: ReportEntry) -> str:
    if entry.band is not None:
        return f", below the band without a verdict, {entry.band[0]:.3f} to {entry.band[1]:.3f}"
    threshold = entry.score.threshold
    return "" if threshold is None else f", below the threshold of {threshold:.3f}"


def _why_inconclusive(entry: ReportEntry, score: float) -> list[str]:
    if entry.score.warnings:
        return list(entry.score.warnings)
    if entry.is_untrained:
        return ["The model was never trained."]
    if entry.band is not None and entry.band[0] <= score <= entry.band[1]:
        low, high = entry.band
        return [f"The score {score:.2f} lies between {low:.2f} and {high:.2f}, where this model gives no verdict."]
    return [f"The score is {score:.2f}, and the evidence behind it is too thin or too uneven for a verdict."]


def _account(score: VideoScore) -> list[dict[str, Any]]:
    """Frames received, as shares that add up: scored first, then each reason, the commonest first."""
    counts = score.frames
    dropped = sorted(counts.dropped.items(), key=lambda item: -item[1])
    rows = [("scored", "scored", counts.scored), *((code.value, _PHRASES[code], n) for code, n in dropped)]
    total, start, account = max(counts.received, 1), 0.0, []
    for number, (code, phrase, n) in enumerate(rows):
        share = 100.0 * n / total
        account.append({"code": code, "phrase": phrase, "n": n, "share": share, "start": start, "kind": min(number, 5)})
        start += share
    return account


def _poster(entry: ReportEntry) -> Markup | None:
    """The picture in the summary: the given frame, else the most suspicious crop of the first track."""
    if entry.thumbnail_HWC is not None:
        return jpeg_uri(entry.thumbnail_HWC, _THUMBNAIL_PX)
    pictured = [frame for _, track in entry.faces[:1] for frame in track.pictured]
    return _crop_uri(max(pictured, key=lambda frame: frame.score)) if pictured else None


# --- one track ------------------------------------------------------------------------------------------------------


def _track(entry: ReportEntry, face: FaceScore, evidence: TrackEvidence, end_s: float, pictures: int) -> dict[str, Any]:
    """A face's chart, strip and heat maps; at most `pictures` pictures in the strip."""
    with_heat = [frame for frame in evidence.pictured if frame.heatmap_HW is not None]
    heat_limit = min(_HEAT_FACES, pictures // 6)
    worst = sorted(with_heat, key=lambda frame: -frame.score)[:heat_limit]
    return {
        "face": face,
        "decides": face.track_id == entry.decides,
        "once": evidence.frames[0] if evidence.is_stray else None,
        "chart": draw_chart(face, evidence, end_s),
        "strip": [{"frame": frame, "uri": _crop_uri(frame)} for frame in fair_choice(evidence.pictured, pictures)],
        "crops": len(evidence.pictured),
        "heat": [{"frame": frame, "uri": _crop_uri(frame, _HEAT_PX), "map": _heat_uri(frame)} for frame in worst],
        # Random weights mark no frame as suspicious.
        "threshold": None if entry.is_untrained else entry.score.threshold,
    }


# --- pictures and text ----------------------------------------------------------------------------------------------


def _crop_uri(frame: FrameEvidence, side_px: int = _THUMBNAIL_PX) -> Markup:
    assert frame.crop_HWC is not None
    return jpeg_uri(frame.crop_HWC, side_px)


def _heat_uri(frame: FrameEvidence) -> Markup:
    assert frame.crop_HWC is not None
    assert frame.heatmap_HW is not None
    return jpeg_uri(overlay(fitted(frame.crop_HWC, _HEAT_PX), frame.heatmap_HW), _HEAT_PX)


@cache
def _environment() -> jinja2.Environment:
    found = environment(Path(__file__).parent)
    found.filters["json_data"] = _json_data
    found.filters["json_text"] = lambda value: json.dumps(_finite(value), indent=2)
    return found


def _finite(value: Any) -> Any:
    """JSON has no word for infinity or not-a-number: both become null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_data(value: Any) -> Markup:
    """JSON that may stand in a script element: nothing in it can close the element or open a comment."""
    text = json.dumps(_finite(value))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))  # noqa: S704
