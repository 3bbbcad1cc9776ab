"""One stream as the desk knows it."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.store import StreamRecord
from unmask.errors import Reason

__all__ = ["DEATHS_S", "Stream"]

DEATHS_S = 600.0
"""Deaths of hosts are remembered for so long."""


@dataclass(slots=True, eq=False)
class Stream:
    """One stream as the desk knows it."""

    record: StreamRecord
    shown: str
    host: int | None = None
    token: str = ""
    """Names its present play in the host: news of an older one is old."""
    placed_s: float = 0.0
    """When it was sent there, by `time.monotonic`."""
    stored: int = 0
    """Up to which number its host's events are stored."""
    state: str = "starting"
    change: dict[str, Any] = field(default_factory=dict)
    """The last change of its state."""
    snapshot: Mapping[str, Any] | None = None
    last: Mapping[str, Any] | None = None
    """The last score."""
    lag_s: float = 0.0
    fill: float = 0.0
    gap: Reason = Reason.SESSION_LOST
    """Why there is a gap before its next play."""
    deaths: list[float] = field(default_factory=list)
    """When hosts died that held it, by `time.monotonic`."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One at a time places, halts or changes it."""

    def died(self) -> int:
        """Note that its host died; how often that was in the last ten minutes."""
        now_s = time.monotonic()
        self.deaths = [*(at for at in self.deaths if at > now_s - DEATHS_S), now_s]
        return len(self.deaths)

    @property
    def settings(self) -> Mapping[str, Any]:
        """name, fps, model, transport, ca_file, paused, over."""
        return self.record.settings
