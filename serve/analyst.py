"""A process that analyses uploads and URLs, one at a time. It may crash or be killed alone: the desk starts another."""

import asyncio
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from serve.faults import failure
from serve.logs import set_up
from serve.settings import Settings
from unmask.addresses import AddressPolicy
from unmask.analysis import Analyzer
from unmask.errors import MediaError, Reason, UnmaskError
from unmask.inputs import FetchLimits, Source, download
from unmask.plan import Sampling
from unmask.records import VideoInfo, VideoScore
from unmask.scoring import ScoringOptions
from unmask.video import probe

__all__ = ["Analyst"]


class _GivenUpError(BaseException):
    """Nobody wants the analysis any more. Passes through what catches exceptions."""


class Analyst:
    """Analyses videos; a Ray actor with two threads, one of which can give the work of the other up.

    Args:
        settings: As of `Settings`, in plain values.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = Settings(**settings)
        self._log = set_up()
        torch.set_num_threads(1)
        self._analyzers: dict[tuple[str, str], Analyzer] = {}
        self._given_up: set[str] = set()
        try:
            self._analyzer(self._settings.model, "")
        except UnmaskError as error:  # each analysis says so
            self._log.error("the default model cannot be had any more (%s)", error.message)

    def ready(self) -> int:
        """The process's id."""
        return os.getpid()

    def give_up(self, analysis_id: str) -> None:
        """End an analysis at its next sign of progress."""
        self._given_up.add(analysis_id)

    def analyze(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Analyse one video.

        Args:
            request: id, shown, path or url, spec and sha256 of the model, and frames, fps or every.

        Yields:
            {"done": share} now and then; at the end {"result": as `unmask score --json`}, or {"given_up": true}.
        """
        news: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        work = threading.Thread(target=self._work, args=(request, news), daemon=True)
        work.start()
        while True:
            item = news.get()
            yield item
            if "done" not in item:
                break
        work.join()

    def _work(self, request: Mapping[str, Any], news: "queue.SimpleQueue[dict[str, Any]]") -> None:
        def progress(share: float) -> None:
            if request["id"] in self._given_up:
                raise _GivenUpError
            news.put({"done": share})

        # Whoever asked waits for it, whatever happens here.
        shown = request["shown"]
        answer: dict[str, Any] = {"result": failure(shown, Reason.INTERNAL, f"The analysis of {shown} broke off.")}
        try:
            progress(0.0)
            answer = {"result": self._result(request, progress)}
        except _GivenUpError:
            self._given_up.discard(request["id"])
            answer = {"given_up": True}
        except UnmaskError as error:
            self._log.exception("an analysis failed", extra={"analysis": request["id"]})
            answer = {"result": failure(shown, error.reason, f"{shown} could not be analysed: {error.message}")}
        except Exception as error:
            self._log.exception("an analysis failed", extra={"analysis": request["id"]})
            message = f"{shown} could not be analysed ({type(error).__name__})."
            answer = {"result": failure(shown, Reason.INTERNAL, message)}
        finally:
            news.put(answer)

    def _result(self, request: Mapping[str, Any], progress: Any) -> dict[str, Any]:
        path, fetched = Path(request["path"]), request.get("url") is not None
        try:
            if fetched:
                limits = FetchLimits(max_bytes=self._settings.max_upload_bytes)
                policy = AddressPolicy(allow_private=self._settings.allow_private)
                asyncio.run(download(request["url"], path, limits, policy, tick=lambda: progress(0.0)))
            self._check(probe(path), request["shown"])
        except MediaError as error:
            return self._failed(request, _named(error, path, request["shown"]))
        analyzer = self._analyzer(request["spec"], request["sha256"])
        score = analyzer.analyze(Source(str(path)), _sampling(request), progress=progress).score
        return _renamed(score, path, request["shown"]).to_json()

    def _check(self, info: VideoInfo, shown: str) -> None:
        """See that a video keeps within the limits.

        Raises:
            MediaError: It does not.
        """
        most_s, most_pixels = self._settings.max_duration_s, self._settings.max_megapixels * 1e6
        if info.duration_s > most_s:
            message = f"{shown} lasts {info.duration_s:.0f} s, and this service takes up to {most_s:g} s; cut it"
            raise MediaError(Reason.TOO_LARGE, message)
        if info.width * info.height > most_pixels:
            message = (
                f"{shown} has pictures of {info.width}x{info.height}, which are too large here; make a smaller copy"
            )
            raise MediaError(Reason.TOO_LARGE, message)

    def _failed(self, request: Mapping[str, Any], error: MediaError) -> dict[str, Any]:
        """The result of a video that cannot be read; it names the model, as the command does, if that can be had."""
        try:
            analyzer = self._analyzer(request["spec"], request["sha256"])
        except UnmaskError:
            return failure(request["shown"], error.reason, error.message)
        return analyzer.analyze(Source(request["shown"], error), Sampling(frames=1)).score.to_json()

    def _analyzer(self, spec: str, sha256: str) -> Analyzer:
        """The analyzer with a model; the two that were used last stay loaded."""
        if (analyzer := self._analyzers.pop((spec, sha256), None)) is None:
            options = ScoringOptions(aggregation=self._settings.aggregation)
            analyzer = Analyzer.load(spec or None, device=self._settings.device, options=options)
            if sha256 and analyzer.description.sha256 != sha256:
                raise MediaError(Reason.CHECKPOINT_HASH, "The model was changed on disk; name it to the service again")
        while len(self._analyzers) > 1:
            del self._analyzers[next(iter(self._analyzers))]
        self._analyzers[spec, analyzer.description.sha256] = analyzer
        return analyzer


def _sampling(request: Mapping[str, Any]) -> Sampling:
    return Sampling(frames=request.get("frames"), rate_fps=request.get("fps"), every=request.get("every"))


def _named(error: MediaError, path: Path, shown: str) -> MediaError:
    """The error, with the name that the caller knows in place of the file's."""
    return MediaError(error.reason, error.message.replace(str(path), shown))


def _renamed(score: VideoScore, path: Path, shown: str) -> VideoScore:
    fields = {name: getattr(score, name) for name in VideoScore.__dataclass_fields__}
    fields["input"] = shown
    if score.error is not None:
        fields["error"] = type(score.error)(score.error.code, score.error.message.replace(str(path), shown))
    return VideoScore(**fields)
