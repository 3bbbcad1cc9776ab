"""`unmask live`: one source in this process, to its end or to Ctrl-C."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from rich.live import Live

from unmask.checkpoints import Description
from unmask.console import out, print_json, say
from unmask.detection import SCORING_THRESHOLDS
from unmask.devices import select_device
from unmask.live import Event, LiveOptions, LiveSession, play
from unmask.live_view import LiveView
from unmask.local_scorer import LocalScorer
from unmask.models import ForgeryModel
from unmask.mtcnn import MTCNN
from unmask.presets import DEFAULT_MODEL, resolve
from unmask.scoring import ScoringOptions
from unmask.streams import StreamOptions, StreamSource

__all__ = ["Ended", "watch_live"]

_DRAWN_A_SECOND = 8


@dataclass(frozen=True, slots=True)
class Ended:
    """How a stream ended.

    Args:
        status: scored, unscored or failed.
        message: What went wrong, where something did.
        interrupted: A person ended it.
    """

    status: str
    message: str | None
    interrupted: bool


def watch_live(
    address: str,
    stream: StreamOptions,
    *,
    model: str | None,
    device: str,
    aggregation: str,
    duration_s: float | None,
    as_json: bool,
) -> Ended:
    """Score a live source until it ends, `duration_s` have passed, or a person interrupts.

    Raises:
        UsageError: The address or an option is wrong.
        MediaError: A file that does not exist.
        ModelError: The model cannot be had.
    """
    options = LiveOptions(scoring=ScoringOptions(aggregation=aggregation), fps=stream.fps)
    source = StreamSource(address, stream)
    session = _session(source, model, device, options)
    interrupted: list[int] = []
    try:
        end = asyncio.run(_show(session, source, duration_s, interrupted, as_json=as_json))
    finally:
        # A thread that is still inside libav when the interpreter goes would crash it.
        source.close(wait_s=stream.open_timeout_s + 1.0)
    error = end["error"]
    return Ended(str(end["status"]), error["message"] if error else None, bool(interrupted))


def _session(source: StreamSource, name: str | None, device: str, options: LiveOptions) -> LiveSession:
    where = select_device(device)
    model, description = _detector(name, str(where))
    scorer = LocalScorer(model, description.preprocessing, MTCNN(device=where, thresholds=SCORING_THRESHOLDS))
    return LiveSession(model, description, scorer, stream_id="live", shown=source.shown, options=options)


def _detector(name: str | None, device: str) -> tuple[ForgeryModel, Description]:
    model, description = resolve(DEFAULT_MODEL if name is None else name, device=device)
    description.check_detects()
    return model.eval(), description


@contextlib.contextmanager
def _on_signals(source: StreamSource, interrupted: list[int]) -> Iterator[None]:
    """Ctrl-C ends the stream, not the program: the account is still to be told."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in signals]

    def stop(number: int) -> None:
        interrupted.append(number)
        source.close()

    for number in signals:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


async def _show(
    session: LiveSession, source: StreamSource, duration_s: float | None, interrupted: list[int], *, as_json: bool
) -> Event:
    """Print or draw the events; gives the last of them."""
    last: Event = {}
    view = LiveView()
    timer = asyncio.get_running_loop().call_later(duration_s, source.close) if duration_s else None
    drawn = out.is_terminal and not as_json
    try:
        with (
            _on_signals(source, interrupted),
            Live(view, console=out, refresh_per_second=_DRAWN_A_SECOND) if drawn else contextlib.nullcontext(),
        ):
            async for event in _events(session, source):
                last = event
                view.take(event)
                if as_json:
                    print_json(event)
                elif not drawn and event["event"] in ("state", "gap"):
                    say(_sentence(event))
    finally:
        if timer is not None:
            timer.cancel()
    if not drawn and not as_json:
        out.print(view)
    return last


async def _events(session: LiveSession, source: StreamSource) -> AsyncIterator[Event]:
    async with contextlib.aclosing(play(session, source)) as events:  # type: ignore[type-var]
        async for event in events:
            yield event


def _sentence(event: Event) -> str:
    if event["event"] == "gap":
        return f"Nothing from {event['start_s']:.1f} to {event['end_s']:.1f} s: {event['message']}"
    return f"{event['state']}{': ' + event['message'] if event['message'] else ''}"
