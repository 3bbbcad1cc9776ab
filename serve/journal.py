"""The store with a bell: events that are written wake those who wait for them."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from serve.store import Event, Store

__all__ = ["Journal"]


class Journal:
    """Events of analyses and streams, for one event loop.

    Args:
        store: Keeps them.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._bells: dict[str, asyncio.Event] = {}

    def tell(
        self, owner: str, events: Iterable[tuple[str, Mapping[str, Any]]], note: Mapping[str, Any] | None = None
    ) -> list[Event]:
        """Write events (kind and data) of one owner, and a note under its name, and wake who waits."""
        made = [Event(0, owner, kind, float(data.get("at", time.time())), data) for kind, data in events]
        written = self.store.append(made, {owner: note} if note is not None else None)
        if written:
            self.ring(owner)
        return written

    def ring(self, owner: str) -> None:
        """Wake who waits for an owner."""
        if (bell := self._bells.pop(owner, None)) is not None:
            bell.set()

    async def after(self, owner: str, after: int, *, wait_s: float, limit: int = 200) -> list[Event]:
        """The events of an owner after an id; where there are none yet, wait for the first."""
        found = self.store.events(owner, after=after, limit=limit)
        if found or wait_s <= 0:
            return found
        bell = self._bells.setdefault(owner, asyncio.Event())
        try:
            await asyncio.wait_for(bell.wait(), wait_s)
        except TimeoutError:
            return []
        return self.store.events(owner, after=after, limit=limit)
