"""Scorers come where frames grow old or calls wait, and go again; no stream notices."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clips import clip
from tests.portraits import filmed
from tests.rtsp_server import filming
from tests.service import balanced, scores, started, until, watching


def scorers() -> int:
    """How many run."""
    from ray import serve as ray_serve

    states = ray_serve.status().applications["unmask"].deployments["scorer"].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scorers_come_with_the_load_and_go_without_it(local_ray: None, tmp_path: Path) -> None:
    film = clip(tmp_path / "film", width=320, height=240, images=filmed(40))
    with (
        filming(film) as camera,
        started(tmp_path / "state", scorers=1, max_scorers=2, max_streams=20) as service,
        watching(service, camera.url()) as stream_id,
    ):
        until(lambda: service.stream(stream_id)["frames"]["scored"] >= 5)
        assert scorers() == 1
        with ExitStack() as crowd:
            began_s = time.monotonic()
            for _ in range(12):
                crowd.enter_context(watching(service, camera.url(), fps=25))
            until(lambda: scorers() == 2, 300)
            print(f"a second scorer after {time.monotonic() - began_s:.1f} s of load")
            held = service.stream(stream_id)["frames"]["scored"]
            until(lambda: service.stream(stream_id)["frames"]["scored"] > held)
        began_s = time.monotonic()
        until(lambda: scorers() == 1, 180)
        print(f"one scorer again {time.monotonic() - began_s:.1f} s after the load went")
        held = service.stream(stream_id)["frames"]["scored"]
        until(lambda: service.stream(stream_id)["frames"]["scored"] >= held + 5)
        found = service.stream(stream_id)
        gaps = [e["reason"] for _, e in scores(service, stream_id) if e["kind"] == "gap"]
    assert balanced(found["frames"])
    assert (found["state"], found["reconnects"], gaps) == ("live", {}, [])
    assert set(found["frames"]["dropped"]) <= {"queue_full", "stale_frame"}
