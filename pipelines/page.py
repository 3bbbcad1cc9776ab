"""The page about a preprocessed dataset: one HTML file that shows at a glance whether something went wrong.

What became of the videos, the reasons with examples, faces of a sample, the configuration, where the time went. It
fetches nothing from anywhere, and its size and the memory to make it do not grow with the dataset: shards are read one
after the other, counted, and sampled.

Axes: H rows, W columns, C = 3 channels in RGB order.
"""

import base64
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from unmask.errors import StorageError
from unmask.inputs import without_password
from unmask.pages import environment
from unmask.products import Products
from unmask.storage import Store

__all__ = ["write_page"]

_STATUSES = ("done", "empty", "failed", "quarantined")
# With 60 sheets of 8 pictures the page stays below 2.6 MB of pictures, whatever they show.
_SHEETS, _PICTURES = 60, 8
_PICTURE_PX, _PICTURE_BYTES = 96, 4000
_QUALITIES = (85, 70, 50, 30, 15)
_EXAMPLES = 3
_TEXT_CHARS = 240
# A manifest may hold any number of methods. What comes after so many is counted together.
_GROUPS_SHOWN, _REASONS_SHOWN, _OTHERS = 40, 40, "others"
_SETTINGS_SHOWN = 200
_COLUMNS = (
    *("video", "label", "method", "status", "reason", "message"),
    *("planned", "decoded", "corrupt", "missing", "faces", "tracks", "width", "height", "duration_s"),
)
# Faces a frame, on average over a video: where a bar of the histogram ends (excluded), and what it says.
_BARS = (
    (1e-9, "none"),
    (0.5, "below 0.5"),
    (0.9, "0.5 to 0.9"),
    (1.1, "0.9 to 1.1"),
    (2.1, "1.1 to 2.1"),
    (4.1, "2.1 to 4.1"),
    (float("inf"), "4.1 and more"),
)

Row = Mapping[str, Any]


def write_page(store: Store, products: Products, summary: Mapping[str, Any]) -> str:
    """Write `index.html`, whole or not at all.

    Args:
        store: Where it goes.
        products: What it is about: all shards that are whole.
        summary: Of the last run, as `pipelines.progress.summary` gives it.

    Returns:
        What to open to see it: a `file://` link, or its address in the bucket.

    Raises:
        StorageError: A table cannot be read, or the page cannot be written. A crop that is damaged is no obstacle.
    """
    census = _Census()
    for shard in products.shards():
        for row, video in enumerate(products.videos(shard).select(_COLUMNS).to_pylist()):
            census.add(video, shard, row)
    sheets = list(_sheets(products, census.sample()))
    place = store.shown
    page = (
        environment(Path(__file__).parent)
        .get_template("page.html.jinja")
        .render(
            place=place,
            name=place.rstrip("/").rpartition("/")[2] or place,
            created=datetime.now(UTC),
            census=census,
            statuses=_STATUSES,
            bars=[(said, census.bars[n]) for n, (_, said) in enumerate(_BARS)],
            reasons=census.ranked_reasons(),
            groups=census.ranked_groups(),
            sheets=sheets,
            settings=_settings(store),
            run=summary,
        )
    )
    # A name's bytes that are no UTF-8 are lone surrogates in Python, which no encoder takes.
    store.write("index.html", page.encode("utf-8", errors="backslashreplace"))
    return store.local_path("index.html").as_uri() if store.is_local else f"{place.rstrip('/')}/index.html"


# --- counting and sampling ------------------------------------------------------------------------------------------


class _Reservoir:
    """A fair sample of a sequence of unknown length (Vitter's algorithm R); the same each time."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.kept: list[Any] = []
        self._rng = random.Random(0)  # noqa: S311

    def add(self, item: Any) -> None:
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(item)
        elif (at := self._rng.randrange(self.seen)) < self.size:
            self.kept[at] = item


@dataclass(slots=True)
class _Group:
    """The videos of one label and method."""

    label: str
    method: str
    statuses: Counter[str] = field(default_factory=Counter)
    decoded: int = 0
    faces: int = 0
    tracks: int = 0

    @property
    def videos(self) -> int:
        return self.statuses.total()


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A video whose faces are shown, and its place in the dataset."""

    shard: int
    row: int
    video: Row


class _Census:
    """What the videos came to, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self.videos = 0
        self.statuses: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.bars: Counter[int] = Counter()
        self._reasons: dict[tuple[str, str], _Reservoir] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._strata: dict[tuple[str, str, str], _Reservoir] = {}

    def add(self, video: Row, shard: int, row: int) -> None:
        self.videos += 1
        self.statuses[video["status"]] += 1
        for name in ("planned", "decoded", "corrupt", "missing", "faces", "tracks"):
            self.totals[name] += video[name]
        self.totals["with_faces"] += video["faces"] > 0
        if video["decoded"]:
            mean = video["faces"] / video["decoded"]
            self.bars[next(n for n, (end, _) in enumerate(_BARS) if mean < end)] += 1
        label, method = _label(video), video["method"] or ""
        if video["reason"] is not None:
            self._explain(video)
        group = self._group((label, method))
        group.statuses[video["status"]] += 1
        group.decoded, group.faces = group.decoded + video["decoded"], group.faces + video["faces"]
        group.tracks += video["tracks"]
        if video["faces"]:
            self._offer(_Chosen(shard, row, video), (video["status"], label, method))

    def _explain(self, video: Row) -> None:
        key = (video["status"], video["reason"])
        if key not in self._reasons:
            key = key if len(self._reasons) < _REASONS_SHOWN else (video["status"], _OTHERS)
        example = {"video": video["video"], "message": _shortened(video["message"] or "")}
        self._reasons.setdefault(key, _Reservoir(_EXAMPLES)).add(example)

    def _group(self, key: tuple[str, str]) -> _Group:
        if key not in self._groups:
            key = key if len(self._groups) < _GROUPS_SHOWN else (key[0], _OTHERS)
        return self._groups.setdefault(key, _Group(*key))

    def _offer(self, candidate: _Chosen, stratum: tuple[str, str, str]) -> None:
        if stratum not in self._strata:
            stratum = stratum if len(self._strata) < _GROUPS_SHOWN else (*stratum[:2], _OTHERS)
        self._strata.setdefault(stratum, _Reservoir(_SHEETS)).add(candidate)

    def ranked_reasons(self) -> list[dict[str, Any]]:
        """Status, reason, number of videos and examples, the most frequent first."""
        ranked = sorted(self._reasons.items(), key=lambda item: -item[1].seen)
        return [
            {"status": status, "reason": reason, "videos": found.seen, "examples": found.kept}
            for (status, reason), found in ranked
        ]

    def ranked_groups(self) -> list[_Group]:
        """By label, the largest first."""
        return sorted(self._groups.values(), key=lambda group: (group.label, -group.videos))

    def sample(self) -> list[_Chosen]:
        """Videos with faces, in the order of the dataset: of each status, label and method as many as of the others."""
        strata = sorted(self._strata.values(), key=lambda stratum: stratum.seen)  # rare ones first
        turns = itertools.chain.from_iterable(itertools.zip_longest(*(stratum.kept for stratum in strata)))
        chosen = itertools.islice((candidate for candidate in turns if candidate is not None), _SHEETS)
        return sorted(chosen, key=lambda candidate: (candidate.shard, candidate.row))


def _label(video: Row) -> str:
    return {0: "real", 1: "fake"}.get(video["label"], "no label")


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS else f"{text[: _TEXT_CHARS - 3]}..."


# --- sheets of faces ------------------------------------------------------------------------------------------------


def _sheets(products: Products, sample: Iterable[_Chosen]) -> Iterator[dict[str, Any]]:
    """What the template shows of each video of the sample. The faces of one shard are in memory at a time."""
    for shard, members in itertools.groupby(sample, lambda chosen: chosen.shard):
        faces = products.faces(shard)
        for chosen in members:
            rows = _choice(faces.filter(pc.equal(faces["video"], chosen.video["video"])))
            pictures, problem = _pictures(products, rows)
            yield {
                "video": chosen.video,
                "label": _label(chosen.video),
                "pictures": pictures,
                "problem": problem,
            }


def _choice(faces: pa.Table) -> pa.Table:
    """Some faces of a video, in order of time: of each track in proportion, and the least probable one."""
    if len(faces) > _PICTURES:
        by_track = np.asarray(pc.sort_indices(faces, [("track", "ascending"), ("pts_s", "ascending")]))
        doubtful = int(np.argmin(faces["probability"].to_numpy()))
        spread = np.linspace(0, len(by_track) - 1, _PICTURES).round().astype(int)
        others = [row for row in by_track[spread].tolist() if row != doubtful]
        faces = faces.take([doubtful, *others[: _PICTURES - 1]])
    return faces.sort_by([("pts_s", "ascending"), ("face", "ascending")])


def _pictures(products: Products, faces: pa.Table) -> tuple[list[dict[str, Any]], str | None]:
    """The crops of some faces, or why they cannot be shown."""
    if not len(faces) or faces["crop"].null_count:
        return [], None
    try:
        return [{"face": face, "uri": _picture(image_HWC)} for face, image_HWC in products.crops(faces)], None
    except StorageError as error:
        return [], _shortened(error.message)


def _picture(image_HWC: NDArray[np.uint8]) -> Markup:
    """A small JPEG as a data URI; one that is hard to compress is made coarser."""
    height, width, _ = image_HWC.shape
    scale = min(1.0, _PICTURE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    bgr_HWC = cv2.resize(np.ascontiguousarray(image_HWC[..., ::-1]), size, interpolation=cv2.INTER_AREA)
    for quality in _QUALITIES:
        coded = cv2.imencode(".jpg", bgr_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(coded) <= _PICTURE_BYTES:
            break
    return Markup("data:image/jpeg;base64," + base64.b64encode(coded).decode("ascii"))  # noqa: S704


# --- configuration and text -----------------------------------------------------------------------------------------


def _settings(store: Store) -> list[tuple[str, str]]:
    """The entries of `job.json`, flat: `detector.scale`, `auto`."""
    try:
        record = json.loads(store.read("job.json"))
    except ValueError:
        raise StorageError(f"{store.shown}/job.json is damaged; put back the one that the run began with.") from None
    return [
        (name.removeprefix("job."), _shortened(value))
        for name, value in itertools.islice(_flat(record), _SETTINGS_SHOWN)
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{name}.{number}")
    elif isinstance(value, list):
        yield name, ", ".join(without_password(str(item)) for item in value) or "none"
    else:
        words = {True: "yes", False: "no", None: "not set"}
        yield name, words[value] if value is None or isinstance(value, bool) else without_password(str(value) or "none")
