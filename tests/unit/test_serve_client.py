"""The desk's callers are answered even where the desk is not."""

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serve import client
from serve.client import DeskClient
from serve.faults import ApiError


class Method:
    """A method of a handle, whose answer comes after a while, or fails."""

    def __init__(self, after_s: float, error: Exception | None = None) -> None:
        self._after_s, self._error = after_s, error
        self.cancelled = False

    async def _answer(self) -> dict[str, Any]:
        try:
            await asyncio.sleep(self._after_s)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._error is not None:
            raise self._error
        return {"ok": 7}

    def remote(self, *_: object) -> Any:
        return self._answer()


class Handle:
    def __init__(self, **methods: Method) -> None:
        self.__dict__ |= methods


def test_a_desk_that_is_silent_or_lost_is_recovering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ANSWER_S", 0.05)
    silent, lost = Method(60.0), Method(0.0, RayActorError())
    for method in (silent, lost):
        with pytest.raises(ApiError) as caught:
            asyncio.run(DeskClient(Handle(streams=method)).ask("streams"))
        assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (503, "NOT_READY", 3)
    assert silent.cancelled


def test_who_loads_a_model_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ANSWER_S", 0.01)
    assert asyncio.run(DeskClient(Handle(put_model=Method(0.1))).ask("put_model", "a", "b")) == 7
