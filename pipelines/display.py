"""A run as a person sees it: a table redrawn on a terminal, a line now and then in a log, a table at the end."""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.progress import Progress

__all__ = ["Display", "print_summary"]

_REDRAW_S = 0.25
_REASONS_SHOWN = 8


def print_summary(run: Mapping[str, Any], console: Console) -> None:
    """Print what `summary` says as a table."""
    table = Table("", "", title="What became of the videos", title_justify="left", show_header=False, box=None)
    videos, frames = run["videos"], run["frames"]
    before = f", {videos['done_before']:,} of them by earlier runs" if videos["done_before"] else ""
    table.add_row("videos", f"{videos['done_before'] + videos['finished']:,} of {videos['total']:,}{before}")
    for status, n in videos["by_status"].items():
        reasons = videos["by_reason"].get(status, {})
        table.add_row(f"  {status}", f"{n:,}" + (f"  ({_counts(reasons)})" if reasons else ""))
    table.add_row("frames", f"{frames['decoded']:,} decoded of {frames['answered']:,} asked for")
    for reason, n in frames["dropped"].items():
        table.add_row(f"  {reason}", f"{n:,}")
    table.add_row("faces", f"{run['faces']:,}")
    for name, stage in run["stages"].items():
        speed = f", {stage['items'] / stage['busy_s']:,.1f} a second" if stage["busy_s"] else ""
        table.add_row(name, f"{stage['busy_s']:,.1f} s of work on {stage['items']:,} {stage['unit']}{speed}")
    pace = f", {run['videos_per_min']:,.1f} videos a minute" if run["videos_per_min"] else ""
    table.add_row("time", f"{_span(run['wall_s'])}{pace}")
    console.print(table, markup=False, highlight=False)


class Display:
    """Shows a run on standard error: a table that is redrawn on a terminal, else a line every ten seconds.

    Used as a context manager. It has no thread: whoever waits for work calls `tick` several times a second.

    Args:
        progress: What is shown.
        console: Where; standard error if None.
        every_s: Seconds between two lines where the console is no terminal.
        clock: Seconds from any origin.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        console: Console | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._console = console or Console(stderr=True)
        self._every_s = _REDRAW_S if self._console.is_interactive else every_s
        self._clock = clock
        self._shown_s = -math.inf
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_interactive:
            # Standard output may be a pipe to a program: then it is left alone.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty()
            )
            self._live.start()
        self.tick()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        else:
            self._write_line()

    def tick(self) -> None:
        """Show how things stand, unless that was done just now."""
        now_s = self._clock()
        if now_s - self._shown_s < self._every_s:
            return
        self._shown_s = now_s
        if self._live is not None:
            self._live.update(_drawn(self._progress), refresh=True)
        else:
            self._write_line()

    def _write_line(self) -> None:
        print(_line(self._progress), file=self._console.file, flush=True)


def _drawn(progress: Progress) -> RenderableType:
    """The table of a terminal."""
    done = progress.done_before + progress.finished
    counted = Text(f"{done:,} of {progress.videos:,} videos; {_pace(progress)}", style="bold")
    bar = Table.grid()
    bar.add_row(ProgressBar(max(progress.videos, 1), done, width=48))
    stages = Table("stage", box=None, padding=(0, 2, 0, 0))
    for heading in ("items", "a second", "workers", "s each"):
        stages.add_column(heading, justify="right")
    for stage in progress.stages():
        stages.add_row(
            stage.name,
            f"{stage.items:,} {stage.unit}",
            "" if stage.items_per_s is None else f"{stage.items_per_s:,.1f}",
            "" if stage.workers is None else f"{stage.workers:.1f}",
            f"{stage.busy_s / stage.items:.4f}" if stage.items else "",
        )
    return Group(counted, bar, stages, *(Text(line) for line in _account(progress)))


def _line(progress: Progress) -> str:
    """The same in one line of a log."""
    done = progress.done_before + progress.finished
    share = f" ({100 * done / progress.videos:.1f}%)" if progress.videos else ""
    rates = [f"{s.name} {s.items_per_s:,.1f}/s" for s in progress.stages() if s.items_per_s is not None]
    parts = [
        f"[{_span(progress.elapsed_s)}] {done:,} of {progress.videos:,} videos{share}",
        _pace(progress),
        *_account(progress),
        ", ".join(rates),
    ]
    return "; ".join(part for part in parts if part)


def _pace(progress: Progress) -> str:
    per_s, eta_s = progress.videos_per_s, progress.eta_s
    if eta_s == 0.0:
        return f"all done in {_span(progress.elapsed_s)}"
    if per_s is None or eta_s is None:
        return "time left not known yet" if per_s is None else "stands still"
    return f"{60 * per_s:,.1f} a minute, {_span(eta_s)} left"


def _account(progress: Progress) -> Iterator[str]:
    """Counters, a line each, of what has come up."""
    shards = progress.shards_before + progress.shards_finished
    results = _counts(progress.by_status()) or "none finished"
    yield f"{results}; {shards:,} of {progress.shards:,} shards whole" if progress.shards else results
    if reasons := progress.by_reason():
        yield f"reasons: {_counts(reasons)}"
    if progress.outcomes.total():
        yield f"frames: {_counts(+progress.outcomes)}; {progress.faces:,} faces"


def _counts(counts: Mapping[str, int]) -> str:
    """`no_face 80, not_a_video 12`, the most frequent first."""
    ranked = Counter(counts).most_common()
    shown = [f"{name} {n:,}" for name, n in ranked[:_REASONS_SHOWN]]
    rest = sum(n for _, n in ranked[_REASONS_SHOWN:])
    return ", ".join([*shown, *([f"others {rest:,}"] if rest else [])])


def _span(seconds: float) -> str:
    """A stretch of time in its two largest units."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
