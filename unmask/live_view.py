"""A stream in a terminal: its state, a line for each face, the account. Redrawn where it stands."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

__all__ = ["LiveView"]

_BARS = " ▁▂▃▄▅▆▇█"
_HISTORY = 24
# A face that was not seen for so long is not shown any more.
_SHOWN_S = 3.0
_STYLE = {"manipulated": "bold red", "authentic": "green", "inconclusive": "yellow"}
_STATES = {"live": "green", "connecting": "cyan", "stalled": "yellow", "reconnecting": "yellow", "failed": "bold red"}


class LiveView:
    """What is to be seen of one stream. `take` every event, and print the view when it is to be drawn."""

    def __init__(self) -> None:
        self._start: Mapping[str, Any] = {}
        self._state: Mapping[str, Any] = {}
        self._faces: dict[int, tuple[float, Mapping[str, Any]]] = {}
        self._history: dict[int, deque[float]] = {}
        self._received = self._scored = self._gaps = 0
        self._dropped: dict[str, int] = {}
        self._pts_s = self._latency_s = 0.0
        self._gap = ""

    def take(self, event: Mapping[str, Any]) -> None:
        """Learn of an event of the session's."""
        kind = event["event"]
        if kind == "start":
            self._start = event
        elif kind == "state":
            self._state = event
        elif kind == "gap":
            self._gaps += 1
            seconds = event["end_s"] - event["start_s"]
            self._gap = f"{event['reason']}, {seconds:.1f} s at {event['start_s']:.1f} s"
            for history in self._history.values():
                history.append(math.nan)
        elif kind == "dropped":
            self._received += event["count"]
            self._dropped[str(event["reason"])] = self._dropped.get(str(event["reason"]), 0) + event["count"]
            self._pts_s = event["pts_s"]
        elif kind == "score":
            self._scores(event)
        elif kind == "track_end":
            self._faces.pop(event["face"]["track_id"], None)
            self._history.pop(event["face"]["track_id"], None)

    def _scores(self, event: Mapping[str, Any]) -> None:
        self._received += 1
        self._scored += 1
        self._pts_s, self._latency_s = event["pts_s"], event["latency_s"]
        for face in event["faces"]:
            self._faces[face["track_id"]] = (event["pts_s"], face)
            self._history.setdefault(face["track_id"], deque(maxlen=_HISTORY)).append(face["window_score"])

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._headline(), self._table(), self._account()]
        shown = [face for pts_s, face in self._faces.values() if self._pts_s - pts_s <= _SHOWN_S]
        remarks = dict.fromkeys(remark for face in shown for remark in face["warnings"])
        parts += [Text(f"- {remark}", style="dim") for remark in remarks]
        return Group(*parts)

    def _headline(self) -> Text:
        state = str(self._state.get("state", "connecting"))
        text = Text.from_markup(f"[bold]{escape(str(self._start.get('input', '')))}[/]  ")
        text.append(state, style=_STATES.get(state, ""))
        media = self._state.get("media")
        if media:
            text.append(f"  {media['width']}x{media['height']} {media['codec'] or media['container']}")
        if self._state.get("message"):
            text.append(f"  {self._state['message']}")
        return text

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("Face", "Verdict", "Score", "Unsure in", "Window", f"Last {_HISTORY}"):
            table.add_column(heading, no_wrap=True, justify="right" if heading in ("Face", "Score") else "left")
        low, high = self._start.get("band", (0.5, 0.5))
        for track_id, (pts_s, face) in sorted(self._faces.items()):
            if self._pts_s - pts_s > _SHOWN_S:
                continue
            verdict = str(face["verdict"])
            table.add_row(
                str(track_id),
                Text(verdict, style=_STYLE.get(verdict, "")),
                f"{face['score']:.3f}",
                f"{low:.2f} to {high:.2f}",
                f"{face['window_frames']}/{self._start.get('window', '?')}",
                "".join(map(_bar, self._history[track_id])),
            )
        return table

    def _account(self) -> Text:
        said = f"{self._pts_s:.1f} s  {self._scored} of {self._received} frames scored"
        if self._dropped:
            said += ", dropped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(self._dropped.items()))
        if self._scored:
            said += f"  ({self._latency_s * 1000:.0f} ms)"
        if self._gaps:
            said += f"\n{self._gaps} gaps, the last: {self._gap}"
        return Text(said)


def _bar(score: float) -> str:
    """A gap is drawn as a gap."""
    return "┊" if math.isnan(score) else _BARS[1 + min(7, int(score * 8))]
