"""The numbers of a run for Prometheus, served by its driver while it lasts.

unmask_videos_total{status,reason}   videos that this run finished; reason is empty where there is none
unmask_frames_total{outcome}         frames: decoded, or the reason why not
unmask_faces_total                   faces found
unmask_stage_seconds{stage}          histogram of the seconds of work in a batch: the rate of its sum is the number
                                     of workers at work, its buckets give quantiles
unmask_run_videos{state}             to_do, done (by earlier runs, too)
unmask_run_eta_seconds               time left; NaN before it is known
"""

import math
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from pipelines.parcels import QUARANTINED
from pipelines.progress import Progress, Receipt
from unmask.errors import Reason, UsageError

__all__ = ["Metrics"]

# A batch of a stage takes from milliseconds to minutes.
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0)


class Metrics:
    """Counts what `Progress` counts, for a Prometheus server to fetch. A context manager that ends the endpoint.

    Args:
        port: Where to serve `/metrics` over HTTP: 0 takes any free port, None serves nothing.
        host: Address to listen at. Whoever reaches it can read the numbers: they carry no names of videos.

    Attributes:
        registry: Holds the metrics, and no others.
        port: Where they are served; None where they are not.

    Raises:
        UsageError: The port is in use, or cannot be had.
    """

    def __init__(self, port: int | None, host: str = "127.0.0.1") -> None:
        self.registry = CollectorRegistry()
        self._videos = Counter(
            "unmask_videos", "Videos finished by this run.", ("status", "reason"), registry=self.registry
        )
        self._frames = Counter(
            "unmask_frames", "Frames: decoded, or the reason why not.", ("outcome",), registry=self.registry
        )
        self._faces = Counter("unmask_faces", "Faces found.", registry=self.registry)
        self._stages = Histogram(
            "unmask_stage_seconds",
            "Seconds of work in a batch, by stage.",
            ("stage",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._run_videos = Gauge(
            "unmask_run_videos", "Videos of the manifest, to_do and done.", ("state",), registry=self.registry
        )
        self._eta = Gauge("unmask_run_eta_seconds", "Time left; NaN before it is known.", registry=self.registry)
        self._eta.set(math.nan)
        # A rate begins at the second value that Prometheus sees: the first is to be 0.
        self._videos.labels("done", "")
        for reason in Reason:
            self._videos.labels("quarantined" if reason in QUARANTINED else "failed", reason)
        self._frames.labels("decoded")
        self._served = _serve(port, host, self.registry) if port is not None else None
        self.port: int | None = self._served[0].server_port if self._served is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        if self._served is not None:
            server, thread = self._served
            self._served = self.port = None
            server.shutdown()
            server.server_close()
            thread.join()

    def follow(self, progress: Progress) -> None:
        """Take the gauges from there, at the time when they are asked for."""
        done: Callable[[], float] = lambda: progress.done_before + progress.finished  # noqa: E731
        self._run_videos.labels("to_do").set_function(lambda: progress.to_do)
        self._run_videos.labels("done").set_function(done)
        self._eta.set_function(lambda: math.nan if (eta_s := progress.eta_s) is None else eta_s)

    def add(self, receipt: Receipt) -> None:
        """Count what was committed."""
        for outcome, frames in (("decoded", receipt.decoded), *receipt.dropped.items()):
            self._frames.labels(outcome).inc(frames)
        self._faces.inc(receipt.faces)
        for stage, seconds in receipt.seconds.items():
            self._stages.labels(stage).observe(seconds)

    def video_done(self, status: str, reason: str | None = None) -> None:
        """Count a video that is finished, well or not."""
        self._videos.labels(status, reason or "").inc()


def _serve(port: int, host: str, registry: CollectorRegistry) -> tuple[WSGIServer, threading.Thread]:
    try:
        return start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"metrics cannot be served at {host}:{port} ({cause}); choose another --metrics-port, or 0 for any"
        ) from None
