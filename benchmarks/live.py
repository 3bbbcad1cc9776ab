"""How soon a stall is noticed, and how soon a stream is scored again after its source is back.

    python -m benchmarks.live [--trials N] [--fault stall|drop|reset|unplug] [--away S]

A camera of the tests plays a portrait over RTSP; it goes wrong in the given way, stays so for --away seconds, and comes
back. `noticed` counts from the fault to the event that says so, `again` from when the source is back to the event with
the next score. The session runs as `unmask live` does: one process, the default model, five frames a second.
"""

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.clips import ENCODINGS, clip
from tests.portraits import filmed
from tests.rtsp_server import Camera, filming
from unmask.analysis import Analyzer
from unmask.live import Event, LiveSession, play
from unmask.local_scorer import LocalScorer
from unmask.streams import StreamOptions, StreamSource

__all__ = ["main"]

_FAULTS = ("stall", "drop", "reset", "unplug")


class _Trial:
    """One stream, one fault, and when what was seen of it."""

    def __init__(self, camera: Camera, fault: str, away_s: float) -> None:
        self.camera, self.fault, self.away_s = camera, fault, away_s
        self.noticed_s = self.again_s = float("nan")
        self._began_s = self._back_s = 0.0

    async def run(self, analyzer: Analyzer) -> None:
        """Until it is scored again, a minute at most."""
        source = StreamSource(self.camera.url(), StreamOptions())
        model, description = analyzer.model, analyzer.description
        scorer = LocalScorer(model, description.preprocessing, analyzer.detector)
        session = LiveSession(model, description, scorer, stream_id="bench", shown=source.shown)
        failing: asyncio.Task[None] | None = None
        async with asyncio.timeout(60):
            async for event in play(session, source):
                if failing is None and event["event"] == "score":
                    failing = asyncio.create_task(self._fail())
                self._look(event)
                if not np.isnan(self.again_s):
                    source.close()
        if failing is not None:
            await failing

    async def _fail(self) -> None:
        await asyncio.sleep(random.uniform(0.2, 0.6))  # anywhere between two pictures
        self._began_s = time.monotonic()
        if self.fault == "stall":
            self.camera.stalled = True
        elif self.fault == "unplug":
            await asyncio.to_thread(self.camera.unplug)
        else:
            self.camera.drop(reset=self.fault == "reset")
        if self.fault in ("stall", "unplug"):
            await asyncio.sleep(self.away_s)
            self.camera.stalled = False
            if self.fault == "unplug":
                self.camera.plug_in()
        self._back_s = time.monotonic()

    def _look(self, event: Event) -> None:
        now_s = time.monotonic()
        is_news = event["event"] == "state" and event["state"] in ("stalled", "reconnecting")
        if self._began_s and np.isnan(self.noticed_s) and is_news:
            self.noticed_s = now_s - self._began_s
        if self._back_s and event["event"] == "score" and not np.isnan(self.noticed_s):
            self.again_s = now_s - self._back_s


def _said(name: str, values_s: list[float]) -> str:
    median, p95 = np.percentile(values_s, [50, 95])
    return f"{name}: median {median:.2f} s, p95 {p95:.2f} s, most {max(values_s):.2f} s"


def main() -> None:
    """Run the trials and print their percentiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--fault", choices=_FAULTS, default="stall")
    parser.add_argument("--away", type=float, default=4.0, help="seconds until the source is back (stall, unplug)")
    parser.add_argument("--model", default=None)
    options = parser.parse_args()
    analyzer = Analyzer.load(options.model, device="cpu")
    encoding = next(e for e in ENCODINGS if e.name == "h264-mp4-no-b")
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        path = clip(Path(folder) / "portrait", encoding, images=filmed(50, 640, 480), width=640, height=480)
        with filming(path) as camera:
            for _ in range(options.trials):
                trial = _Trial(camera, options.fault, options.away)
                asyncio.run(trial.run(analyzer))
                trials.append(trial)
    print(f"{options.fault}, {len(trials)} trials")
    print(_said("noticed", [trial.noticed_s for trial in trials]))
    print(_said("scored again", [trial.again_s for trial in trials]))


if __name__ == "__main__":
    main()
