"""How many streams a machine holds, how soon a frame has its score, and how scorers come and go.

    python -m benchmarks.streams held|latency|batching|scaling [--streams N] [--seconds S]

held      streams of 720p that the service scores five times a second each, against a service that computes the whole
          clip anew for every window: the streams that two of its processes would hold
latency   seconds from a frame's arrival to its score, over several streams
batching  crops a second of one scorer, asked by many streams at once, with batches and without
scaling   one stream, many, one again: how soon scorers come and go, and what becomes of the streams

Cameras play a portrait over RTSP from a process beside, which costs some of the same cores. The model is the default
one.
"""

import argparse
import asyncio
import multiprocessing as mp
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from serve.batcher import Batcher
from serve.command import serving
from serve.scorer import ModelKey, ScoringEngine
from serve.settings import Settings
from tests.clips import ENCODINGS, clip
from tests.portraits import filmed
from tests.rtsp_server import filming
from tests.service import Service as _Service
from tests.service import free_port, scores, until

__all__ = ["main"]

_FPS, _CAMERA_FPS = 5.0, 25.0
_WIDTH, _HEIGHT = 1280, 720
_HELD = 0.95
"""A stream is held where so many of its frames are scored."""


def _play(path: Path, urls: "mp.Queue[str]", over: Event) -> None:
    with filming(path) as camera:
        urls.put(camera.url())
        over.wait()


def _film(folder: Path, width: int, height: int) -> Path:
    encoding = replace(next(e for e in ENCODINGS if e.name == "h264-mp4-no-b"), options={"g": "50", "bf": "0"})
    return clip(folder / f"{height}", encoding, images=filmed(100, width, height), width=width, height=height)


@contextmanager
def _camera(folder: Path, width: int, height: int) -> Iterator[str]:
    """A camera in a process of its own; its address."""
    path = _film(folder, width, height)
    context = mp.get_context("spawn")
    urls, over = context.Queue(), context.Event()
    process = context.Process(target=_play, args=(path, urls, over))
    process.start()
    try:
        yield urls.get(timeout=60)
    finally:
        over.set()
        process.join(30)


@contextmanager
def _service(folder: Path, **settings: Any) -> Iterator[_Service]:
    values: dict[str, Any] = {
        "hosts": 2,
        "scorers": 1,
        "max_scorers": 1,
        "analysts": 0,
        "max_streams": 64,
        "allow_private": True,
    }
    values |= {"scorer_cpus": 0.1, **settings}
    told = Settings(port=free_port(), state=folder / "state", **values)
    with serving(told) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield _Service(url, folder, http)


@contextmanager
def _watched(width: int = _WIDTH, height: int = _HEIGHT, **settings: Any) -> Iterator[tuple[_Service, str]]:
    """A service and a camera."""
    with (
        tempfile.TemporaryDirectory() as name,
        _camera(Path(name), width, height) as url,
        _service(Path(name), **settings) as service,
    ):
        yield service, url


def _add(service: _Service, url: str, **wanted: Any) -> str:
    answer = service.http.post("/v1/streams", json={"url": url, "fps": _FPS, **wanted})
    answer.raise_for_status()
    return str(answer.json()["id"])


def _frames(service: _Service) -> dict[str, Any]:
    return {s["id"]: s["frames"] for s in service.http.get("/v1/streams").json()}


def _shares(service: _Service, seconds: float) -> list[float]:
    """For each stream the share of its due frames that was scored in the next seconds."""
    before = _frames(service)
    began_s = time.monotonic()
    time.sleep(seconds)
    after, took_s = _frames(service), time.monotonic() - began_s
    return [(f["scored"] - before[i]["scored"]) / (took_s * _FPS) for i, f in after.items() if i in before]


def _latencies(service: _Service, ids: list[str], since: float) -> np.ndarray[Any, Any]:
    found = [e for i in ids for _, e in scores(service, i) if e["kind"] == "score" and e["at"] > since]
    return np.array([e["latency_s"] for e in found])


def _tell(name: str, values_s: np.ndarray[Any, Any]) -> None:
    p50, p95, p99 = np.percentile(values_s, [50, 95, 99]) * 1000
    print(f"{name}: {len(values_s)} scores, median {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms", flush=True)


# --- held -----------------------------------------------------------------------------------------------------------


def _naive(path: Path, seconds: float) -> float:
    """Scores a second of one process that takes the last seconds of a stream as a clip, for every score anew."""
    import av
    import torch

    from unmask.analysis import Analyzer
    from unmask.faces import crop
    from unmask.transforms import resize, to_tensor

    torch.set_num_threads(1)
    analyzer = Analyzer.load(device="cpu")
    model, preprocessing = analyzer.model, analyzer.description.preprocessing
    last, every = round(model.config.window / _FPS * _CAMERA_FPS), round(_CAMERA_FPS / _FPS)

    @torch.inference_mode()
    def score() -> None:
        features = []
        with av.open(path) as container:
            for number, frame in zip(range(last), container.decode(video=0), strict=False):
                if number % every == 0:
                    image_HWC = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    faces = analyzer.detector.search([image_HWC])[0]
                    face = crop(image_HWC, faces.boxes_N4[0], faces.landmarks_NK2[0], preprocessing)
                    inputs = to_tensor([resize(face, preprocessing)], preprocessing, torch.device("cpu"))
                    features.append(model.features(inputs)[0])
        features_TD = torch.stack(features)
        model.window_logits(torch.cat([features_TD.mean(0), features_TD.std(0, correction=0)])[None])

    score()
    done, began_s = 0, time.monotonic()
    while time.monotonic() - began_s < seconds:
        score()
        done += 1
    return done / (time.monotonic() - began_s)


def held(most: int, seconds: float) -> None:
    """Streams of 720p at five scores a second."""
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(2, mp_context=mp.get_context("spawn")) as pool,
    ):
        path = _film(Path(name), _WIDTH, _HEIGHT)
        naive = sum(pool.map(_naive, [path] * 2, [seconds] * 2)) / _FPS
    print(f"naive, two processes: {naive * _FPS:.2f} scores/s, {naive:.3f} streams", flush=True)
    best = 0
    with _watched() as (service, url):
        ids: list[str] = []
        for count in range(1, most + 1):
            ids.append(_add(service, url))
            until(lambda: all(f["scored"] >= 5 for f in _frames(service).values()))
            time.sleep(5.0)
            since = time.time()
            shares = _shares(service, seconds)
            _tell(f"{count} streams, least share scored {min(shares):.2f}", _latencies(service, ids, since))
            if min(shares) < _HELD:
                break
            best = count
    print(f"held: {best} streams against {naive:.3f}: {best / naive:.1f}x")


# --- latency --------------------------------------------------------------------------------------------------------


def latency(streams: int, seconds: float) -> None:
    """Frame to score."""
    with _watched() as (service, url):
        ids = [_add(service, url) for _ in range(streams)]
        until(lambda: all(f["scored"] >= 10 for f in _frames(service).values()))
        since = time.time()
        shares = _shares(service, seconds)
        _tell(f"{streams} streams, least share scored {min(shares):.2f}", _latencies(service, ids, since))


# --- batching -------------------------------------------------------------------------------------------------------


def batching(callers: int, seconds: float) -> None:
    """One scorer asked by many streams, each for one crop at a time; the two ways take turns."""
    engine = ScoringEngine()
    _, description = engine.models.get(ModelKey(""))
    key, size_px = ModelKey("", description.sha256), description.preprocessing.size_px
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    crops_1HWC = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)

    async def rate(most: int) -> float:
        done = 0
        with ThreadPoolExecutor(1) as pool:
            batcher: Batcher[Any, Any] = Batcher(engine.embed, pool, most)
            over_s = time.monotonic() + seconds

            async def caller() -> None:
                nonlocal done
                while time.monotonic() < over_s:
                    await batcher((key, crops_1HWC), group=key)
                    done += 1

            await asyncio.gather(*(caller() for _ in range(callers)))
        return done / seconds

    rates: dict[int, list[float]] = {1: [], 16: []}
    asyncio.run(rate(16))
    for _ in range(3):
        for most, found in rates.items():
            found.append(asyncio.run(rate(most)))
    alone, together = (float(np.median(found)) for found in rates.values())
    print(
        f"{engine.models.device}, {callers} callers: {alone:.0f} crops/s one by one, {together:.0f} in batches of up to"
    )
    print(f"16: {together / alone:.2f}x")


# --- scaling --------------------------------------------------------------------------------------------------------


def _scorers() -> int:
    from ray import serve as ray_serve

    deployments = ray_serve.status().applications["unmask"].deployments
    return sum(count for state, count in deployments["scorer"].replica_states.items() if str(state) == "RUNNING")


def scaling(most: int, seconds: float) -> None:
    """From one scorer to several and back."""
    with _watched(320, 240, max_scorers=2) as (service, url):
        first = _add(service, url)
        until(lambda: _frames(service)[first]["scored"] >= 10)
        assert _scorers() == 1
        began_s = time.monotonic()
        others = [_add(service, url, fps=25.0) for _ in range(most)]
        up_s = _when(lambda: _scorers() > 1, began_s)
        time.sleep(seconds)
        for stream_id in others:
            service.http.delete(f"/v1/streams/{stream_id}").raise_for_status()
        began_s = time.monotonic()
        down_s = _when(lambda: _scorers() == 1, began_s)
        stream = service.stream(first)
        gaps = [e["reason"] for _, e in scores(service, first) if e["kind"] == "gap"]
    print(f"a second scorer {up_s:.1f} s after the load came; one again {down_s:.1f} s after it went")
    print(f"the first stream: {stream['state']}, gaps {gaps}, reconnects {stream['reconnects']}, {stream['frames']}")


def _when(found: Callable[[], bool], began_s: float) -> float:
    until(found, 180.0)
    return time.monotonic() - began_s


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs: dict[str, tuple[Callable[[int, float], None], int, float]] = {
        "held": (held, 12, 15.0), "latency": (latency, 4, 60.0), "batching": (batching, 16, 10.0),
        "scaling": (scaling, 12, 20.0),
    }  # fmt: skip
    parser.add_argument("what", choices=runs)
    parser.add_argument("--streams", type=int, default=None, help="how many (held: at the most)")
    parser.add_argument("--seconds", type=float, default=None, help="of each measurement")
    options = parser.parse_args()
    run, streams, seconds = runs[options.what]
    run(options.streams or streams, options.seconds or seconds)


if __name__ == "__main__":
    main()
