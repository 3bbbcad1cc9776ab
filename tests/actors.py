"""Actors without Ray: what the desk's books say of processes that live, die and are silent."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

__all__ = ["Host", "Method", "ended", "playing"]


class Method:
    """A method of a handle."""

    def __init__(self, work: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._work = work

    def remote(self, *args: Any) -> "asyncio.Task[Any]":
        return asyncio.ensure_future(self._work(*args))


async def ended(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """End tasks. `asyncio.wait_for` of Python 3.11 may swallow a cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.05)


def playing(token: str, events: list[tuple[int, dict[str, Any]]] | None = None) -> dict[str, Any]:
    """News of a stream that plays."""
    return {
        "token": token, "events": events or [], "snapshot": None, "state": "live", "lag_s": 0.0, "fill": 0.0,
        "over": False,
    }  # fmt: skip


class Host:
    """A `serve.host.Host` of which only the books are real.

    Attributes:
        plays: What plays, as `poll` tells it.
        started: What it was asked to play.
        forgotten: What it was told to forget, with the token.
    """

    def __init__(self, *, starts_s: float = 0.0, halts_s: float = 0.02) -> None:
        self._starts_s, self._halts_s = starts_s, halts_s
        self.plays: dict[str, dict[str, Any]] = {}
        self.sockets: list[str] = []
        self.started: list[Mapping[str, Any]] = []
        self.forgotten: list[tuple[str, str | None]] = []
        self.adopted: list[tuple[str, str]] = []
        self.refuses: Exception | None = None
        self.is_dead = False
        self.described: list[str] = []

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self, f"_{name}"))

    async def _ready(self, settings: Mapping[str, Any]) -> int:
        del settings
        await asyncio.sleep(self._starts_s)
        self._check()
        return 1

    def _check(self) -> None:
        if self.is_dead:
            raise ConnectionError("the process is no more")

    async def _poll(self, stored: Mapping[str, int], wait_s: float) -> dict[str, Any]:
        for stream_id, number in stored.items():
            if stream_id in self.plays:
                events = self.plays[stream_id]["events"]
                self.plays[stream_id]["events"] = [pair for pair in events if pair[0] > number]
        await asyncio.sleep(min(wait_s, 0.01))
        self._check()
        streams = {k: dict(play) for k, play in self.plays.items()}
        return {"pid": 1, "numbers": [], "sockets": list(self.sockets), "streams": streams}

    async def _start(self, wanted: Mapping[str, Any]) -> None:
        await asyncio.sleep(0.005)
        self._check()
        if self.refuses is not None:
            raise self.refuses
        self.started.append(wanted)
        if wanted["url"] is None:
            self.sockets.append(wanted["id"])
        else:
            snapshot = {k: v for k, v in (wanted["resume"] or {}).items() if k != "reason"}
            self.plays[wanted["id"]] = {**playing(wanted["token"]), "snapshot": snapshot or None}

    async def _stop(self, stream_id: str) -> None:
        async def end() -> None:
            await asyncio.sleep(self._halts_s)
            if stream_id in self.plays:
                self.plays[stream_id]["over"] = True

        self._ending = asyncio.create_task(end())

    async def _forget(self, stream_id: str, token: str | None = None) -> None:
        self.forgotten.append((stream_id, token))
        play = self.plays.get(stream_id)
        if play is not None and token in (None, play["token"]):
            del self.plays[stream_id]

    async def _adopt(self, stream_id: str, spec: str, sha256: str) -> None:
        del sha256
        await asyncio.sleep(0.005)
        if self.refuses is not None:
            raise self.refuses
        self.adopted.append((stream_id, spec))

    async def _describe(self, spec: str) -> dict[str, Any]:
        if self.refuses is not None and spec:
            raise self.refuses
        self.described.append(spec)
        return {"name": spec or "ours", "version": "1", "sha256": "00" * 32, "trained": True, "card": []}
