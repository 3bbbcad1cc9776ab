"""The page about a dataset: what it counts, what it shows, and that it stays small."""

import base64
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipelines.page import write_page
from pipelines.progress import Progress, Receipt, summary
from tests.products import BOX, Clip, finished_run
from unmask.errors import StorageError
from unmask.products import FACES, Products, shard_name
from unmask.storage import Store

HOSTILE = "<script>alert(1)</script>\u202egpj.exe"
JOB: dict[str, Any] = {
    "config": "c0ffee",
    "unmask": "0.1.0",
    "job": {"detector": {"thresholds": [0.7, 0.8, 0.8], "scale": "auto"}, "crops": {"size_px": None, "square": True},
            "embed": [{"model": "s3://me:secret@bucket/model"}]},
}  # fmt: skip


def last_run(videos: int = 6, **options: Any) -> dict[str, Any]:
    progress = Progress(videos=videos, **options)
    progress.add(Receipt(frames=12, faces=20, seconds={"decode": 1.5, "detect": 12.25}))
    progress.video_done("done")
    return summary(progress)


def seen(video: str, *, frames: int = 12, faces: int = 2, **columns: Any) -> Clip:
    """A clip in which each frame has as many faces."""
    return Clip(video=video, faces={n: [BOX] * faces for n in range(frames)}, columns=columns)


def unseen(video: str, status: str, reason: str, message: str = "") -> Clip:
    return Clip(video=video, faces={}, status=status, columns={"reason": reason, "message": message, "label": 1})


def full_run(store: Store, **options: Any) -> Products:
    clips = [
        seen("original/one", label=0, method="original", identity=["a"]),
        seen("deepfakes/one_two", label=1, method="Deepfakes"),
        seen(HOSTILE, faces=1, label=1, method=HOSTILE),
        Clip(video="cut", corrupt=frozenset({10}), status="quarantined", columns={"reason": "decoder_hung"}),
        unseen("nobody", "empty", "no_face", "nobody.mp4 shows no face."),
        unseen("noise", "failed", "not_a_video", f"{HOSTILE} is not a video."),
    ]
    store.write("job.json", json.dumps(JOB).encode())
    return finished_run(store, clips, **options)


def page_of(store: Store, products: Products, run: dict[str, Any] | None = None) -> str:
    write_page(store, products, run or last_run())
    return store.read("index.html").decode()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run of today")


def pictures(page: str) -> list[Any]:
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR) for text in found]


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())


@pytest.mark.parametrize("packing", ["tar", "files"])
def test_page_counts_explains_and_shows(store: Store, packing: str) -> None:
    page = page_of(store, full_run(store, packing=packing))
    text = text_of(page)
    assert "What became of 6 videos" in text
    for said in ("3 done: faces were found", "1 empty:", "1 failed:", "1 quarantined:"):
        assert said in text
    for reason in ("decoder_hung", "no_face", "not_a_video"):
        assert reason in text
    assert "nobody nobody.mp4 shows no face." in text
    assert "12 of 12 frames" in text
    assert "24 faces, 1 track" in text
    assert "Faces of 4 videos" in text
    assert "fake Deepfakes 1 1" in text
    shown = pictures(page)
    assert len(shown) == 8 + 8 + 8 + 2  # the damaged one is shown, too
    assert all(image is not None and max(image.shape) == 96 for image in shown)
    assert 'class="damaged"' in page
    assert "decode 1.5 12 frames" in text
    assert "12.2" in text


def test_faces_shown_are_those_of_the_videos(store: Store) -> None:
    products = full_run(store)
    page = page_of(store, products)
    for row, crop_HWC in products.crops(products.faces(1).slice(0, 1)):
        height, width, _ = crop_HWC.shape
        expected = cv2.resize(crop_HWC, (96, 96 * height // width), interpolation=cv2.INTER_AREA)[..., ::-1]
        assert row["video"] == HOSTILE
    shown = pictures(page)[16]
    assert np.abs(shown.astype(int) - expected).mean() < 6


def test_configuration_is_flat_and_without_passwords(store: Store) -> None:
    text = text_of(page_of(store, full_run(store)))
    assert "detector.thresholds 0.7, 0.8, 0.8" in text
    assert "crops.size_px not set" in text
    assert "crops.square yes" in text
    assert "embed.0.model s3://bucket/model" in text
    assert "secret" not in text


def test_names_from_outside_are_harmless(store: Store) -> None:
    page = page_of(store, full_run(store))
    assert "<script" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202egpj.exe" in page


def test_page_fetches_nothing(store: Store) -> None:
    page = page_of(store, full_run(store))
    assert not re.findall(r"""\b(?:src|href|url)\s*[=(]\s*(?!["']?(?:data:|#))""", page)
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page


def test_link_opens_the_page(store: Store) -> None:
    link = write_page(store, full_run(store), last_run())
    assert link.startswith("file:///")
    assert Path(unquote(urlparse(link).path)).read_text() == store.read("index.html").decode()


def test_a_run_that_is_not_finished_says_so(store: Store) -> None:
    products = full_run(store)
    assert "not on this page" not in page_of(store, products)
    assert "94 videos of 100 are not on this page" in text_of(page_of(store, products, last_run(100)))


def test_a_run_without_crops_says_so(store: Store) -> None:
    page = page_of(store, full_run(store, packing="none"))
    assert pictures(page) == []
    assert text_of(page).count("This run keeps no crops.") == 4


def test_a_damaged_crop_does_not_stop_the_page(store: Store) -> None:
    products = full_run(store)
    store.delete("crops/00000.tar")
    page = page_of(store, products)
    assert "crops/00000.tar cannot be read" in text_of(page)
    assert len(pictures(page)) == 8 + 2


def test_a_damaged_table_does(store: Store) -> None:
    products = full_run(store)
    store.write("videos/00000.parquet", b"PAR1")
    with pytest.raises(StorageError, match=r"videos/00000\.parquet cannot be read"):
        write_page(store, products, last_run())
    assert not store.exists("index.html")


def test_a_damaged_configuration_is_one_sentence(store: Store) -> None:
    products = full_run(store)
    store.write("job.json", b"{")
    with pytest.raises(StorageError, match=r"job\.json is damaged; "):
        write_page(store, products, last_run())


def test_an_empty_run_has_a_page(store: Store) -> None:
    store.write("job.json", b"{}")
    text = text_of(page_of(store, Products(store), summary(Progress(videos=0))))
    assert "What became of 0 videos" in text
    assert "No video gave a face." in text
    assert "There is no video yet." in text


def test_sheets_mix_labels_and_statuses_and_spread_over_the_dataset(store: Store) -> None:
    clips = [
        Clip(video=f"v{n:03d}", faces={0: [BOX]}, columns={"label": int(n % 10 == 0), "method": "m" if n % 2 else None})
        for n in range(300)
    ]
    rare = Clip(video="rare", faces={0: [BOX]}, status="failed", columns={"label": 0, "reason": "decode_failed"})
    store.write("job.json", b"{}")
    page = page_of(store, finished_run(store, [*clips, rare], per_shard=30))
    shown = re.findall(r"<h3><bdi>(\w+)</bdi></h3>", page)
    assert len(shown) == 60
    assert shown == sorted(shown, key=lambda name: 999 if name == "rare" else int(name[1:]))
    assert "rare" in shown
    numbers = [int(name[1:]) for name in shown if name != "rare"]
    assert 15 <= sum(n % 10 == 0 for n in numbers) <= 25  # of 30 fakes among 300
    assert {n // 100 for n in numbers} == {0, 1, 2}
    assert page_of(store, Products(store)).count("data:image") == page.count("data:image")  # the same each time


def test_of_many_faces_each_track_has_its_share_and_the_doubtful_one_is_there(store: Store) -> None:
    products = full_run(store)
    faces = products.faces(0).to_pylist()
    for n, face in enumerate(faces[:24]):
        face["track"] = 0 if n < 18 else 1
        face["probability"] = 0.71 if n == 5 else 0.99
    store.write_table(shard_name("faces", 0), pa.Table.from_pylist(faces, schema=FACES))
    first = page_of(store, products).partition('<ul class="strip">')[2].partition("</ul>")[0]
    tracks = re.findall(r"<span>t(\d)</span>", first)
    assert len(tracks) == 8
    assert 1 <= tracks.count("1") <= 3
    assert "probability 0.71" in first
    times = [float(t) for t in re.findall(r"Face at ([\d.]+) seconds", first)]
    assert times == sorted(times)


def noise(frame: int) -> Any:
    return np.random.default_rng(frame).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def test_size_is_bounded_whatever_the_faces_show(store: Store) -> None:
    clips = [
        Clip(
            video=f"{n}" + "x" * 300,
            picture=noise,
            faces={frame: [BOX] for frame in range(8)},
            columns={"message": "m" * 9999, "reason": f"r{n}"},
        )
        for n in range(64)
    ]
    store.write("job.json", json.dumps({"job": {f"option{n}": "v" * 999 for n in range(999)}}).encode())
    page = page_of(store, finished_run(store, clips, per_shard=32))
    assert len(pictures(page)) == 480
    assert len(page) < 3_000_000
    assert "others" in page


def test_memory_does_not_grow_with_the_dataset(store: Store) -> None:
    store.write("job.json", b"{}")
    products = finished_run(store, [seen(f"v{n}", frames=1, faces=1, label=n % 2) for n in range(64)], per_shard=64)
    videos, faces = products.videos(0), products.faces(0)

    def peak(shards: int) -> int:
        for shard in range(shards):
            store.write_table(shard_name("videos", shard), videos)
            store.write_table(shard_name("faces", shard), faces)
        tracemalloc.start()
        write_page(store, products, last_run())
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    peak(2)
    assert peak(80) < 1.3 * peak(8)
