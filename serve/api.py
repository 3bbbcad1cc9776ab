"""HTTP: `/v1`, health, metrics and the page. It keeps no state; the desk does."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from serve.client import DeskClient
from serve.events import AnalysisEvent, StreamEvent
from serve.faults import ApiError
from serve.guard import Guard
from serve.logs import set_up
from serve.metrics import CONTENT_TYPE, Meter
from serve.page_files import page_router
from serve.schemas import (
    AnalysisRequest,
    AnalysisResource,
    ErrorResponse,
    ModelRequest,
    ModelResource,
    StreamChange,
    StreamRequest,
    StreamResource,
)
from serve.settings import Settings
from serve.socket import __doc__ as socket_notes
from serve.socket import socket_router
from unmask import __version__
from unmask.inputs import without_password

__all__ = ["make_api"]

_WAIT_S = 10.0
# An event stream ends after so many events; clients go on by Last-Event-ID. What a client that never reads can pile up
# in the proxy is bounded by that.
_MOST_EVENTS, _MOST_WAITS = 5000, 90
_MOST_ID = 2**63 - 1
_NETWORK = ("rtsp://", "rtsps://", "http://", "https://")
_OPEN = frozenset({"/", "/healthz"})
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 409, 413, 422, 429)
}
# For the description only: `Guard` checks it.
_KEY = HTTPBearer(
    auto_error=False, scheme_name="key", description="Where the service has API keys. X-API-Key takes one, too."
)
# An upload that a client is slow with is given up.
_SILENCE_S = 30.0


def make_api(settings: Settings, desk: DeskClient, digests: frozenset[str]) -> FastAPI:
    """The application.

    Args:
        settings: Of the service.
        desk: Answers.
        digests: Of the keys that let in.
    """
    api = _Api(
        title="Unmask", version=__version__, docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json",
        description=f"Finds manipulated faces in uploads and live streams.\n\n## WS /v1/live\n\n{socket_notes}",
    )  # fmt: skip
    guard, refusals = Guard(digests), _Refusals(desk)
    log = set_up()

    async def refuse(error: ApiError) -> JSONResponse:
        refusals.count(error.code)
        return JSONResponse(error.to_json(), error.status, error.headers)

    @api.middleware("http")
    async def guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.scope["path"]  # as it is routed; older versions of Starlette put the URL together from a header
        try:
            if path not in _OPEN and not path.startswith("/page/"):
                guard.check(request.headers, request.client.host if request.client else None)
            response = await call_next(request)
        except ApiError as error:
            response = await refuse(error)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @api.exception_handler(ApiError)
    async def on_refusal(_: Request, error: ApiError) -> JSONResponse:
        return await refuse(error)

    @api.exception_handler(RequestValidationError)
    async def on_bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return await refuse(_bad_request(list(error.errors())))

    @api.exception_handler(HTTPException)
    async def on_no_such_thing(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            return await refuse(ApiError("METHOD_NOT_ALLOWED", f"{request.method} is nothing that this address knows"))
        code = "NOT_FOUND" if error.status_code == 404 else "BAD_REQUEST"
        return await refuse(ApiError(code, "There is nothing at this address" if code == "NOT_FOUND" else error.detail))

    @api.exception_handler(Exception)
    async def on_fault(request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error, extra={"path": request.scope["path"]})
        fault = ApiError("INTERNAL", "The service failed over this request; its log says why")
        return JSONResponse(fault.to_json(), fault.status)

    api.include_router(_health())
    for router in (_numbers(desk), _analyses(settings, desk), _streams(desk), _models(desk)):
        api.include_router(router, dependencies=[Security(_KEY)])
    api.include_router(socket_router(desk, guard))
    api.include_router(page_router())
    return api


class _Refusals:
    """Tells the desk what is refused. Who is refused does not wait for that: it may be because there is no desk."""

    def __init__(self, desk: DeskClient) -> None:
        self._desk, self._meter = desk, Meter()
        self._telling: asyncio.Task[None] | None = None

    def count(self, code: str) -> None:
        """One more, for this reason."""
        self._meter.count("unmask_refusals", code)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        while numbers := self._meter.drain():
            try:
                await self._desk.plain("count", numbers)
            except Exception:  # told with the next one
                self._meter.merge(numbers)
                return


def _bad_request(errors: list[Any]) -> ApiError:
    first = errors[0]
    where = ".".join(str(part) for part in first.get("loc", ()) if part not in ("body", "query"))
    return ApiError("BAD_REQUEST", f"{where}: {first['msg']}" if where else str(first["msg"]))


class _EventStream(StreamingResponse):
    media_type = "text/event-stream"


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The description. FastAPI calls an event a string beside its schema, as all that is not JSON."""
        described = super().openapi()
        for path in described["paths"].values():
            for content in path.get("get", {}).get("responses", {}).get("200", {}).get("content", {}).values():
                if {"oneOf", "anyOf"} & set(content["schema"]):
                    content["schema"].pop("type", None)
        return described


def _health() -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The door answers."""
        return {"status": "ok", "version": __version__}

    return router


def _numbers(desk: DeskClient) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/readyz")
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether streams and uploads are taken; 503 while not."""
        found = await desk.plain("ready")
        response.status_code = 200 if found["ready"] else 503
        return {"ready": found["ready"], "hosts": found["hosts"], "models": found["models"]}

    @router.get("/metrics")
    async def metrics() -> Response:
        """The numbers of the whole service, for Prometheus."""
        return Response(await desk.plain("metrics"), media_type=CONTENT_TYPE)

    return router


def _analyses(settings: Settings, desk: DeskClient) -> APIRouter:
    router = APIRouter(prefix="/v1/analyses", tags=["analyses"], responses=_REFUSALS)

    @router.post("", status_code=202, response_model=AnalysisResource, openapi_extra=_BODY)
    async def analyse(
        request: Request,
        name: Annotated[str, Query(max_length=255, description="The upload's name.")] = "upload",
        frames: Annotated[int | None, Query(ge=1, le=100_000)] = None,
        fps: Annotated[float | None, Query(gt=0, le=1000)] = None,
        every: Annotated[int | None, Query(ge=1)] = None,
        model: Annotated[str, Query(max_length=100)] = "default",
        callback_url: Annotated[str | None, Query(max_length=4096)] = None,
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    ) -> Any:
        """Analyse a video: its bytes as the body, or JSON with a URL. Answers at once; see `/events` for the rest."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            raise ApiError("BAD_REQUEST", "Send the video's bytes as the body (curl --data-binary @clip.mp4)")
        wanted: dict[str, Any] = {
            "frames": frames, "fps": fps, "every": every, "model": model, "callback_url": callback_url,
            "shown": Path(name).name or "upload",
        }  # fmt: skip
        if kind == "application/json":
            wanted |= await _by_url(request)
        if sum(wanted[k] is not None for k in ("frames", "fps", "every")) > 1:
            raise ApiError("BAD_REQUEST", "frames, fps and every exclude each other; give one of them")
        if wanted["frames"] is wanted["fps"] is wanted["every"] is None:
            wanted["frames"] = 32
        size = request.headers.get("content-length")
        wanted |= {"key": idempotency_key, "fingerprint": json.dumps([sorted(wanted.items()), size])}
        known = await desk.ask("room_for_analysis", idempotency_key, wanted["fingerprint"])
        if known is not None:
            return known
        if "url" in wanted:
            return await desk.ask("submit", wanted)
        path = await _upload(request, settings)
        try:
            answer = await desk.ask("submit", {**wanted, "path": str(path)})
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return answer

    @router.get("", response_model=list[AnalysisResource])
    async def analyses(limit: Annotated[int, Query(ge=1, le=500)] = 20) -> Any:
        """The newest analyses."""
        return await desk.ask("analyses", limit)

    @router.get("/{analysis_id}", response_model=AnalysisResource)
    async def analysis(analysis_id: str) -> Any:
        """One analysis."""
        return await desk.ask("analysis", analysis_id)

    @router.delete("/{analysis_id}", status_code=204)
    async def remove_analysis(analysis_id: str) -> None:
        """Forget an analysis; one that runs is given up."""
        await desk.ask("remove_analysis", analysis_id)

    @router.get(
        "/{analysis_id}/events",
        response_class=_EventStream,
        responses={200: {"model": AnalysisEvent, "description": "What stands in `data:` of each event"}},
    )
    async def analysis_events(analysis_id: str, last_event_id: Annotated[str | None, Header()] = None) -> Any:
        """Server-sent events: queued, progress, result."""
        return await _events(desk, analysis_id, _number(last_event_id) or 0)

    return router


_BODY = {
    "requestBody": {
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": AnalysisRequest.model_json_schema()},
        }
    }
}


async def _by_url(request: Request) -> dict[str, Any]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > 65536:
            raise ApiError("TOO_LARGE", "The request is too long")
    try:
        wanted = AnalysisRequest.model_validate_json(body)
    except ValidationError as error:
        raise _bad_request(list(error.errors())) from None
    if not wanted.url.lower().startswith(("http://", "https://")):
        raise ApiError("BAD_REQUEST", "url: give an http or https URL, or send the video itself")
    return {**wanted.model_dump(), "shown": without_password(wanted.url)}


async def _upload(request: Request, settings: Settings) -> Path:
    """Write a body to a file as it comes; nothing is kept of one that is too long or breaks off.

    Raises:
        ApiError: TOO_LARGE, at once where its length is announced; BAD_REQUEST for none at all.
    """
    most = settings.max_upload_bytes
    too_large = ApiError("TOO_LARGE", f"Uploads may have up to {settings.max_upload_mb} MiB; make a smaller copy")
    announced = _number(request.headers.get("content-length"))
    if announced is not None and announced > most:
        raise too_large
    path = settings.state / "spool" / f"{secrets.token_hex(12)}.upload"
    size = 0
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            chunks = request.stream().__aiter__()
            while True:
                try:
                    chunk = await asyncio.wait_for(anext(chunks), _SILENCE_S)
                except StopAsyncIteration:
                    break
                size += len(chunk)
                if size > most:
                    raise too_large
                file.write(chunk)
        if not size:
            raise ApiError("BAD_REQUEST", "The body is empty; send a video's bytes, or JSON with a url")
    except TimeoutError:
        path.unlink(missing_ok=True)
        raise ApiError("BAD_REQUEST", f"The upload fell silent for {_SILENCE_S:g} s; send it again") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _streams(desk: DeskClient) -> APIRouter:
    router = APIRouter(prefix="/v1/streams", tags=["streams"], responses=_REFUSALS)

    @router.post("", status_code=201, response_model=StreamResource)
    async def add_stream(wanted: StreamRequest) -> Any:
        """Watch a live source until it is removed; it is connected to again whenever it is lost."""
        if not wanted.url.lower().startswith(_NETWORK):
            raise ApiError("BAD_REQUEST", "url: give an rtsp, rtsps, http or https address")
        return await desk.ask("add_stream", wanted.model_dump())

    @router.get("", response_model=list[StreamResource])
    async def streams() -> Any:
        """All streams."""
        return await desk.ask("streams")

    @router.get("/{stream_id}", response_model=StreamResource)
    async def stream(stream_id: str) -> Any:
        """One stream."""
        return await desk.ask("stream", stream_id)

    @router.patch("/{stream_id}", response_model=StreamResource)
    async def change_stream(stream_id: str, changes: StreamChange) -> Any:
        """Rename, pause or resume a stream, change its rate, or let another model judge it."""
        given = {k: v for k, v in changes.model_dump(exclude_unset=True).items() if v is not None or k == "name"}
        return await desk.ask("change_stream", stream_id, given)

    @router.delete("/{stream_id}", status_code=204)
    async def remove_stream(stream_id: str) -> None:
        """End and forget a stream, whatever it is doing."""
        await desk.ask("remove_stream", stream_id)

    @router.get(
        "/{stream_id}/events",
        response_class=_EventStream,
        responses={200: {"model": StreamEvent, "description": "What stands in `data:` of each event"}},
    )
    async def stream_events(
        stream_id: str,
        last: Annotated[int, Query(ge=0, le=2000, description="Past events to begin with.")] = 100,
        follow: Annotated[bool, Query(description="Wait for more, or end after those of the past.")] = True,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Any:
        """Server-sent events: start, state, gap, score, dropped, track_end, account, end."""
        return await _events(desk, stream_id, _number(last_event_id), last, follow=follow)

    return router


def _number(text: str | None) -> int | None:
    """A header's number; above what the store can hold, the greatest that it can."""
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return min(int(text), _MOST_ID) if len(text) <= len(str(_MOST_ID)) else _MOST_ID


async def _events(
    desk: DeskClient, owner: str, after: int | None, last: int = 0, *, follow: bool = True
) -> _EventStream:
    # The first answer before the headers: a wrong id is a 404. The newest event says where the future begins.
    first = await desk.ask("events", owner, after, 0.0, max(last, 1))
    newest = first["events"][-1]["id"] if first["events"] else after or 0
    if after is None and not last:
        first["events"] = []

    async def lines() -> AsyncIterator[bytes]:
        position, found, sent, waits = newest, first, 0, 0
        yield b"retry: 1000\n\n"
        while True:
            for event in found["events"]:
                position = max(position, event["id"])
                data = json.dumps(event["data"], allow_nan=False, separators=(",", ":"))
                yield f"id: {event['id']}\nevent: {event['kind']}\ndata: {data}\n\n".encode()
            sent, waits = sent + len(found["events"]), waits + (not found["events"])
            if found["over"] or sent > _MOST_EVENTS or waits > _MOST_WAITS or not (follow or found["events"]):
                return
            if not found["events"]:
                yield b": still here\n\n"
            try:
                found = await desk.ask("events", owner, position, _WAIT_S if follow else 0.0)
            except ApiError:  # it was removed
                return

    return _EventStream(lines(), headers={"X-Accel-Buffering": "no"})


def _models(desk: DeskClient) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["models"], responses=_REFUSALS)

    @router.get("", response_model=list[ModelResource])
    async def models() -> Any:
        """The models that may be asked for."""
        return await desk.ask("models")

    @router.put("/{name}", response_model=ModelResource)
    async def put_model(name: str, wanted: ModelRequest) -> Any:
        """Let a name stand for a model. Streams that use it go on with it; their windows begin anew."""
        return await desk.ask("put_model", name, wanted.model)

    return router
