"""Analyses of uploads and URLs: a queue, and processes that may die over a video without harm to the others."""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve.callbacks import call_back
from serve.faults import ApiError, failure
from serve.journal import Journal
from serve.metrics import Meter
from serve.settings import Settings
from serve.store import AnalysisRecord
from serve.within import within
from unmask.addresses import AddressPolicy
from unmask.errors import Reason

__all__ = ["Bench"]

_LOG = logging.getLogger("unmask.serve")
_MOST_DEATHS = 2
_TELL_EVERY_S = 0.4


class _HungError(Exception):
    """An analyst showed no progress."""


class Bench:
    """Analyses videos, `settings.analysts` at a time, in the order in which they came.

    Args:
        settings: Of the service.
        journal: Gets the events.
        meter: Gets the numbers.
        start_analyst: From a number to the handle of a new actor.
        kill: Ends an actor.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        meter: Meter,
        start_analyst: Callable[[int], Any],
        kill: Callable[[Any], None],
    ) -> None:
        self._settings, self._journal, self._meter = settings, journal, meter
        self._start_analyst, self._kill = start_analyst, kill
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._running: dict[str, Any] = {}
        self._progress: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._policy = AddressPolicy(allow_private=settings.allow_private)
        self.pids: dict[int, int] = {}

    def begin(self) -> None:
        """Take up what the last run of the service left."""
        store = self._journal.store
        for record in [*reversed(store.analyses("running", 10_000)), *reversed(store.analyses("queued", 10_000))]:
            store.put_analysis(replace(record, state="queued"))
            self._queue.put_nowait(record.id)
        for number in range(self._settings.analysts):
            self._spawn(self._work(number))
        for record in store.with_callback("owed"):
            self._spawn(self._call_back(record))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def waiting(self) -> dict[str, int]:
        """How many wait and how many run."""
        return {"queued": self._queue.qsize(), "running": len(self._running)}

    def check_room(self) -> None:
        """See that one more may wait.

        Raises:
            ApiError: BUSY.
        """
        if self._queue.qsize() >= self._settings.max_waiting:
            raise ApiError("BUSY", f"{self._queue.qsize()} videos wait already; send this one later", 15)

    def progress(self, analysis_id: str) -> float:
        """Share of the work that is done, of one that runs."""
        return self._progress.get(analysis_id, 0.0)

    def submit(self, record: AnalysisRecord) -> None:
        """Take a new analysis."""
        self._journal.store.put_analysis(record)
        self._journal.tell(record.id, [("queued", {"ahead": self._queue.qsize() + len(self._running)})])
        self._queue.put_nowait(record.id)

    async def remove(self, record: AnalysisRecord) -> None:
        """Forget an analysis, whatever state it is in, and its file."""
        self._journal.store.delete(record.id)
        self._journal.ring(record.id)
        if (actor := self._running.get(record.id)) is not None:
            actor.give_up.remote(record.id)
        else:
            _unlink(record)

    async def _work(self, number: int) -> None:
        """One analyst, for ever."""
        actor: Any = None
        while True:
            if actor is None:
                actor = await self._new_analyst(number)
            analysis_id = await self._queue.get()
            record = self._journal.store.analysis(analysis_id)
            if record is None or record.state != "queued":
                continue
            try:
                actor = await self._analyze(record, number, actor)
            except Exception:
                _LOG.exception("an analysis broke off", extra={"analysis": analysis_id})
                self._break_off(record)
                actor = None

    def _break_off(self, record: AnalysisRecord) -> None:
        message = f"{record.input} could not be analysed; the service's log says why."
        try:
            self._finish(record, failure(record.input, Reason.INTERNAL, message))
        except sqlite3.Error as error:  # it is taken up again at the next start
            _LOG.error("a result could not be stored (%s)", error, extra={"analysis": record.id})

    async def _new_analyst(self, number: int) -> Any:
        while True:
            try:
                actor = self._start_analyst(number)
                self.pids[number] = await within(180.0, actor.ready.remote())
                return actor
            except Exception as error:
                _LOG.warning("an analyst did not start (%s)", error)
                await asyncio.sleep(2.0)

    async def _analyze(self, record: AnalysisRecord, number: int, actor: Any) -> Any:
        """Have one video analysed, by another process where one dies of it; the analyst that is left."""
        self._journal.store.put_analysis(replace(record, state="running"))
        self._progress[record.id] = 0.0
        request: dict[str, Any] = {**record.request, "id": record.id, "shown": record.input}
        deaths = 0
        try:
            while True:
                self._running[record.id] = actor
                result: Mapping[str, Any] | None
                try:
                    result = await self._asked(record.id, actor, request)
                    break
                except Exception as error:
                    hung = isinstance(error, _HungError)
                    _LOG.warning("an analyst is lost (%s)", type(error).__name__, extra={"analysis": record.id})
                    deaths += 1
                    self._kill(actor)
                    actor = await self._new_analyst(number)
                    if self._journal.store.analysis(record.id) is None:
                        return actor
                    if deaths >= _MOST_DEATHS:
                        result = self._fault(record, hung=hung)
                        break
            self._finish(record, result)
        finally:
            self._running.pop(record.id, None)
            self._progress.pop(record.id, None)
            _unlink(record)
        return actor

    def _fault(self, record: AnalysisRecord, *, hung: bool) -> dict[str, Any]:
        reason = Reason.DECODER_HUNG if hung else Reason.DECODER_CRASHED
        what = "hung" if hung else "killed"
        message = f"{record.input} {what} the process that analysed it, twice; re-encode it and send it again."
        return failure(record.input, reason, message)

    async def _asked(self, analysis_id: str, actor: Any, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The result; None where nobody wants it any more.

        Raises:
            _HungError: No sign of progress for too long.
            RayError: The process died.
        """
        answers = actor.analyze.options(num_returns="streaming").remote(request).__aiter__()
        told_s = 0.0
        while True:
            try:
                item = await within(60.0, await within(self._settings.silence_s, answers.__anext__()))
            except TimeoutError:
                raise _HungError from None
            if "done" not in item:
                return item.get("result")  # type: ignore[no-any-return]
            self._progress[analysis_id] = item["done"]
            if time.monotonic() - told_s >= _TELL_EVERY_S:
                told_s = time.monotonic()
                with contextlib.suppress(sqlite3.Error):
                    self._journal.tell(analysis_id, [("progress", {"done": round(item["done"], 3)})])

    def _finish(self, record: AnalysisRecord, result: Mapping[str, Any] | None) -> None:
        if self._journal.store.analysis(record.id) is None or result is None:
            return
        is_owed = record.request.get("callback_url") is not None
        request = {**record.request, "callback": "owed"} if is_owed else record.request
        done = replace(record, state="done", finished_s=time.time(), result=result, request=request)
        self._journal.store.put_analysis(done)
        self._journal.tell(record.id, [("result", {"result": result})])
        reason = result["error"]["code"] if result["error"] else ""
        self._meter.count("unmask_analyses", result["status"], reason)
        if is_owed:
            self._spawn(self._call_back(done))

    async def _call_back(self, record: AnalysisRecord) -> None:
        """Tell the caller's server; a service that is restarted before that is noted tells it again."""
        url, store = record.request["callback_url"], self._journal.store
        plain = {"id": record.id, "state": record.state, "finished_at": record.finished_s, "result": record.result}
        outcome = await call_back(url, plain, self._settings.callback_secret(), self._policy)
        self._meter.count("unmask_callbacks", outcome)
        if outcome != "delivered":
            _LOG.warning("a callback was %s", outcome, extra={"analysis": record.id})
        if store.analysis(record.id) is not None:
            store.put_analysis(replace(record, request={**record.request, "callback": outcome}))


def _unlink(record: AnalysisRecord) -> None:
    with contextlib.suppress(OSError):
        Path(record.request["path"]).unlink(missing_ok=True)
