"""`unmask live` and the session behind it, against a real camera: scores, gaps, the account, the end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from tests import clips
from tests.clips import ENCODINGS
from tests.portraits import filmed
from tests.rtsp_server import filming
from unmask.analysis import Analyzer
from unmask.cli import app
from unmask.inputs import Source
from unmask.live import Event, LiveOptions, LiveSession, play
from unmask.local_scorer import LocalScorer
from unmask.plan import Sampling
from unmask.streams import StreamOptions, StreamSource
from unmask.tally import TrackTally

BY_NAME = {encoding.name: encoding for encoding in ENCODINGS}
SIZE = {"width": 320, "height": 240}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camera")
    return clips.clip(folder / "clip", BY_NAME["h264-mp4"], images=filmed(50), **SIZE)


@pytest.fixture(scope="module")
def analyzer() -> Analyzer:
    return Analyzer.load("mobilenetv3-small-temporal", device="cpu", pretrained=False)


def session_of(analyzer: Analyzer, **options: Any) -> LiveSession:
    model, description = analyzer.model, analyzer.description
    scorer = LocalScorer(model, description.preprocessing, analyzer.detector)
    return LiveSession(
        model, description, scorer, stream_id="s", shown="clip", options=LiveOptions(stale_s=None, **options)
    )


async def played(session: LiveSession, source: StreamSource) -> list[Event]:
    return [event async for event in play(session, source)]


def check(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What holds of every stream; gives its end."""
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert (events[0]["event"], events[-1]["event"]) == ("start", "end")
    frames = events[-1]["frames"]
    assert frames["received"] == frames["scored"] + sum(frames["dropped"].values())
    assert frames["scored"] == sum(event["event"] == "score" for event in events)
    dropped = [event for event in events if event["event"] == "dropped"]
    assert sum(event["count"] for event in dropped) == sum(frames["dropped"].values())
    times_s = [event["pts_s"] for event in events if event["event"] == "score"]
    assert times_s == sorted(set(times_s))
    return events[-1]


def test_a_stream_has_the_window_features_of_the_file(
    clip: Path, analyzer: Analyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame of a clip, by `score` and as a stream: the same statistics go to the temporal head."""
    seen: list[NDArray[np.float32]] = []
    statistics = TrackTally.statistics

    def noted(*args: Any) -> NDArray[np.float32]:
        seen.append(statistics(*args))
        return seen[-1]

    monkeypatch.setattr(TrackTally, "statistics", noted)
    score = analyzer.analyze(Source(str(clip)), Sampling(every=1)).score
    of_file, seen[:] = np.stack(seen), []
    source = StreamSource(str(clip), StreamOptions(fps=None, speed=1000.0, lossless=True))
    end = check(asyncio.run(played(session_of(analyzer, fps=None, memory_s=3600.0), source)))
    assert end["frames"] == {"received": 50, "scored": score.frames.scored, "dropped": dict(score.frames.dropped)}
    assert score.frames.scored > 40
    assert np.abs(np.stack(seen) - of_file).max() <= 1e-5


def test_a_camera_is_scored_again_after_it_was_away(clip: Path, analyzer: Analyzer) -> None:
    with filming(clip) as camera:
        source = StreamSource(camera.url(), StreamOptions(fps=2.0))
        session, events = session_of(analyzer, fps=2.0), []

        async def watched() -> None:
            unplugged = False
            async for event in play(session, source):
                events.append(event)
                if event["event"] == "score" and not unplugged:
                    unplugged = True
                    # The event loop goes on meanwhile.
                    await asyncio.to_thread(camera.unplug)
                elif event["event"] == "score" and any(e["event"] == "gap" for e in events):
                    source.close()
                if event["event"] == "state" and event["reason"] == "stream_unreachable":
                    await asyncio.to_thread(camera.plug_in)

        try:
            asyncio.run(asyncio.wait_for(watched(), 100))
        finally:
            source.close()
    end = check(events)
    assert end["reason"] == "interrupted"
    (gap,) = [event for event in events if event["event"] == "gap"]
    after = next(event for event in events if event["event"] == "score" and event["pts_s"] >= gap["end_s"])
    assert after["faces"][0]["window_frames"] == 1
    assert end["reconnects"]["stream_disconnected"] == 1


# --- the command ----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["live", "--device", "cpu", *map(str, arguments)], catch_exceptions=False)


def test_a_file_to_its_end(clip: Path) -> None:
    result = run(clip, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    end = check(events)
    assert end["frames"]["received"] == 10
    assert end["status"] == "scored" or set(end["frames"]["dropped"]) <= {"stale_frame", "queue_full"}
    assert [e["state"] for e in events if e["event"] == "state"] == ["connecting", "live", "ended"]


def test_what_a_person_sees(clip: Path) -> None:
    result = run(clip)
    assert result.exit_code == 0
    assert "of 10 frames scored" in result.stdout
    assert any(v in result.stdout for v in ("authentic", "manipulated", "inconclusive", "0 of 10"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gone.mp4"], 1, "does not exist"),
        (["ftp://me:secret@host/x"], 2, "ftp is not known"),
        (["CLIP", "--fps", "-1"], 2, "--fps must be above 0"),
        (["CLIP", "--duration", "0"], 2, "--duration must be above 0"),
        (["CLIP", "--transport", "pigeon"], 2, "--transport is tcp or udp"),
        (["CLIP", "--ca-file", "gone.pem"], 2, "gone.pem does not exist"),
        (["CLIP", "--model", "nothing"], 2, "no model is called"),
        (["rtsp://me:secret@127.0.0.1:9/cam"], 1, "cannot be reached"),
    ],
)
def test_mistakes_are_one_sentence(clip: Path, arguments: list[str], code: int, said: str) -> None:
    result = run(*(str(clip) if a == "CLIP" else a for a in arguments))
    assert result.exit_code == code
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert "secret" not in result.stdout + result.stderr


@pytest.mark.parametrize("ending", ["duration", "interrupt"])
def test_a_camera_until_it_is_enough(clip: Path, ending: str) -> None:
    with filming(clip) as camera:
        command = [sys.executable, "-m", "unmask.cli", "live", camera.url(), "--json", "--device", "cpu", "--fps", "2"]
        command += ["--duration", "4"] if ending == "duration" else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            events = []
            for line in process.stdout:
                events.append(json.loads(line))
                if ending == "interrupt" and len(events) == 6:
                    os.kill(process.pid, signal.SIGINT)
            errors = process.stderr.read() if process.stderr else ""
        assert process.returncode == (0 if ending == "duration" else 130), errors
    end = check(events)
    assert end["reason"] == "interrupted"
    assert "Traceback" not in errors
