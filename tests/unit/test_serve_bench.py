"""Analyses always end: where their process dies or hangs, the model is gone, or the disk is full."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serve.analyst import Analyst
from serve.bench import Bench
from serve.journal import Journal
from serve.metrics import Meter
from serve.schemas import VideoResult
from serve.settings import Settings
from serve.store import AnalysisRecord, Store
from tests.actors import Method, ended
from tests.callbacks import failing
from tests.clips import clip
from unmask.checkpoints import Description
from unmask.presets import DEFAULT_MODEL, resolve


class Process:
    """An analyst that dies, hangs or answers nonsense."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer
        self.analyze = self

    def options(self, **_: object) -> "Process":
        return self

    async def remote(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        del request
        yield asyncio.sleep(0, {"done": 0.0})
        yield asyncio.sleep(0, self._answer())

    @property
    def ready(self) -> Method:
        async def pid() -> int:
            return 1

        return Method(pid)


def died() -> Any:
    raise ConnectionError("the process is no more")


def run(tmp_path: Path, answer: Callable[[], Any], broken: Callable[[Store], None] = lambda _: None) -> Any:
    """The analyses that come out, of two, with the number of processes that were started."""

    async def scene(store: Store) -> tuple[list[AnalysisRecord], int]:
        made: list[Process] = []

        def start(_: int) -> Process:
            made.append(Process(answer))
            return made[-1]

        bench = Bench(Settings(state=tmp_path), Journal(store), Meter(), start, lambda _: None)
        bench.begin()
        for n in range(2):
            request = {"path": str(tmp_path / f"{n}.mp4"), "model": "default"}
            bench.submit(AnalysisRecord(id=f"a{n}", state="queued", input="x.mp4", created_s=n, request=request))
        broken(store)
        try:
            async with asyncio.timeout(10):
                while len(store.analyses("done")) < 2:
                    await asyncio.sleep(0.01)
        finally:
            await ended(bench._tasks)
        return store.analyses("done"), len(made)

    with Store(tmp_path / "s") as store:
        return asyncio.run(scene(store))


def test_a_video_that_kills_two_processes_is_given_up(tmp_path: Path) -> None:
    analyses, started = run(tmp_path, died)
    assert [a.result["error"]["code"] for a in analyses] == ["decoder_crashed"] * 2
    assert "x.mp4" in analyses[0].result["error"]["message"]
    assert started == 5  # one, and a new one for each death
    VideoResult.model_validate(analyses[0].result)


def test_an_error_of_ours_ends_the_analysis_too(tmp_path: Path) -> None:
    analyses, _ = run(tmp_path, lambda: {"result": {"nonsense": True}})
    assert [a.result["error"]["code"] for a in analyses] == ["internal"] * 2
    VideoResult.model_validate(analyses[0].result)


def test_a_disk_that_was_full_for_a_while_ends_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(store: Store) -> None:
        put, failures = store.put_analysis, iter(range(3))

        def full(record: AnalysisRecord) -> None:
            if record.state == "done" and next(failures, None) is not None:
                raise sqlite3.OperationalError("database or disk is full")
            put(record)
            if record.id == "a1" and record.state == "done":  # the first was left for the next start
                put(AnalysisRecord(**{f: getattr(record, f) for f in record.__dataclass_fields__} | {"id": "a0"}))

        monkeypatch.setattr(store, "put_analysis", full)

    analyses, _ = run(tmp_path, lambda: {"result": {"status": "failed", "error": None}}, broken)
    assert len(analyses) == 2


@pytest.fixture(scope="module")
def description() -> Description:
    return resolve(DEFAULT_MODEL)[1]


@pytest.mark.parametrize(
    ("spec", "sha256", "code"), [("", "0" * 64, "checkpoint_hash"), ("gone.safetensors", "", "missing_file")]
)
def test_a_model_that_was_changed_or_is_gone_is_an_answer(
    tmp_path: Path, description: Description, spec: str, sha256: str, code: str
) -> None:
    analyst = Analyst(Settings(state=tmp_path, device="cpu").model_dump(mode="json"))
    prose = tmp_path / "talk.mp4"
    prose.write_bytes(b"no video " * 100)
    whole = {"id": "a", "shown": "talk.mp4", "path": str(prose), "frames": 2}
    *_, last = analyst.analyze({**whole, "spec": spec, "sha256": sha256})
    assert last["result"]["error"]["code"] == "not_a_video"
    assert last["result"]["model"] is None
    *_, last = analyst.analyze({**whole, "spec": "", "sha256": description.sha256})
    assert last["result"]["model"]["sha256"] == description.sha256
    film = clip(tmp_path / "film", frames=4)
    *_, last = analyst.analyze({**whole, "path": str(film), "spec": spec, "sha256": sha256})
    assert last["result"]["error"]["code"] == code
    VideoResult.model_validate(last["result"])


def test_a_callback_that_is_owed_outlives_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.callbacks._CALL_PAUSE_S", 60.0)
    result = {"status": "failed", "error": {"code": "not_a_video", "message": "x"}}
    settings = Settings(state=tmp_path, allow_private=True)

    async def told(store: Store, record: AnalysisRecord | None, enough: Callable[[], bool]) -> None:
        """A service's life, up to a moment."""
        bench = Bench(settings, Journal(store), Meter(), lambda _: Process(dict), lambda _: None)
        bench.begin()
        if record is not None:
            bench._finish(record, result)
        try:
            async with asyncio.timeout(10):
                while not enough():
                    await asyncio.sleep(0.01)
        finally:
            await ended(bench._tasks)

    with Store(tmp_path / "s") as store, failing(times=1) as server:
        request = {"path": "x", "model": "default", "callback_url": f"http://127.0.0.1:{server.server_port}/"}
        record = AnalysisRecord(id="a0", state="running", input="x.mp4", created_s=0.0, request=request)
        store.put_analysis(record)
        asyncio.run(told(store, record, lambda: len(server.taken) == 1))
        assert [r.id for r in store.with_callback("owed")] == ["a0"]
        asyncio.run(told(store, None, lambda: bool(store.with_callback("delivered"))))
        assert len(server.taken) == 2
        assert not store.with_callback("owed")
        assert json.loads(server.taken[1][1])["result"] == result
