"""The live socket: pictures in, scores out, with credits so that neither side can drown the other.

A client opens `/v1/live?model=NAME` and receives {"event": "credits", "credits": n}. Each binary message is a picture:
eight bytes float64 (big endian) with its presentation time in seconds, four bytes uint32 with the number of messages
that the client has read so far, then a JPEG, PNG or WebP, or an access unit of H.264 in the byte stream format (Annex
B: a start code, the parameter sets where they are new, one coded picture). Units come in the order of decoding;
parameter sets and the size of the pictures may change at any IDR picture. A message costs a credit; the event that
tells what became of it (`score` or `dropped`) gives it back: `credits` in every message says how many more the client
has now; `number` counts the messages. A picture that cannot be decoded is `dropped` (media_unreadable, decode_failed);
so are those of H.264 that damage or a missing unit may have reached (corrupt_frame), up to the next IDR picture. A
client that sends without credits, or does not read, is cut off (1008).
A text message {"end": true} lets what waits be scored; then the socket closes (1000).
"""

import asyncio
import json
import struct
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from serve.client import DeskClient
from serve.faults import ApiError, from_error
from serve.guard import SUBPROTOCOL, Guard
from serve.within import within
from unmask.errors import UnmaskError

__all__ = ["CREDITS", "HEADER", "socket_router"]

HEADER = struct.Struct(">dI")
CREDITS = 8
_MOST_UNREAD = 200
_MOST_BYTES = 8 * 2**20
_PULL_S, _CALL_S, _SILENCE_S = 5.0, 20.0, 60.0


class _CutError(Exception):
    """The socket is to be closed."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Live:
    """One socket, open."""

    def __init__(self, socket: WebSocket, host: Any, socket_id: str) -> None:
        self._socket, self._host, self._id = socket, host, socket_id
        self._credits, self._sent, self._read = CREDITS, 0, 0
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Until one side has enough."""
        await self._send({"event": "credits", "credits": CREDITS})
        tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._tell())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, event: dict[str, Any]) -> None:
        self._sent += 1
        await self._socket.send_text(json.dumps({**event, "number": self._sent}, allow_nan=False))

    async def _receive(self) -> None:
        while not self._ended.is_set():
            try:
                message = await within(_SILENCE_S, self._socket.receive())
            except TimeoutError:
                raise _CutError(1001, "STREAM_TIMEOUT", f"Nothing came for {_SILENCE_S:g} s.") from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            if message.get("bytes") is not None:
                await self._take(message["bytes"])
            else:
                await self._obey(message.get("text") or "")

    async def _take(self, data: bytes) -> None:
        if len(data) <= HEADER.size or len(data) > _MOST_BYTES:
            raise _CutError(1009, "TOO_LARGE", "A message is twelve bytes and a picture or unit of up to 8 MiB.")
        pts_s, read = HEADER.unpack_from(data)
        self._note_read(read)
        if self._credits <= 0:
            raise _CutError(1008, "BUSY", "A picture came without a credit.")
        self._credits -= 1
        running = await within(_CALL_S, self._host.push.remote(self._id, data[HEADER.size :], pts_s))
        if not running:
            raise _CutError(1011, "INTERNAL", "The session is over; connect again.")

    def _note_read(self, read: int) -> None:
        if read > self._sent:
            raise _CutError(1008, "BAD_REQUEST", "The client read more messages than there were.")
        self._read = max(self._read, read)
        if self._sent - self._read > _MOST_UNREAD:
            raise _CutError(1008, "BUSY", "The client does not read what it is sent.")

    async def _obey(self, text: str) -> None:
        try:
            wanted = json.loads(text)
        except ValueError:
            wanted = None
        if wanted != {"end": True}:
            raise _CutError(1003, "BAD_REQUEST", 'A text message is {"end": true}.')
        self._ended.set()
        await self._host.end.remote(self._id)

    async def _tell(self) -> None:
        after = 0
        while True:
            events, over = await within(_CALL_S, self._host.pull.remote(self._id, after, _PULL_S))
            for number, event in events:
                after = number
                answered = {"score": 1, "dropped": event.get("count", 1)}.get(event["event"], 0)
                answered = min(answered, CREDITS - self._credits)
                self._credits += answered
                await self._send({**event, "credits": answered})
            if over and not events:
                raise _CutError(1000, "", "")


def socket_router(desk: DeskClient, guard: Guard) -> APIRouter:
    """`/v1/live`."""
    router = APIRouter()

    @router.websocket("/v1/live")
    async def live(socket: WebSocket, model: str = "default") -> None:
        protocols = socket.headers.get("sec-websocket-protocol", "")
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in protocols else None)
        try:
            guard.check(socket.headers, socket.client.host if socket.client else None)
            opened = await desk.ask("open_socket", model)
        except ApiError as error:
            await _close(socket, 1013 if error.code in ("BUSY", "NOT_READY") else 1008, error.code, error.message)
            return
        await _serve(socket, desk, opened)

    return router


async def _serve(socket: WebSocket, desk: DeskClient, opened: dict[str, Any]) -> None:
    import ray
    from ray.exceptions import RayError

    host: Any = None
    try:
        host = ray.get_actor(opened["host"], namespace=opened["namespace"])
        await _Live(socket, host, opened["id"]).run()
    except WebSocketDisconnect:
        pass
    except _CutError as cut:
        await _close(socket, cut.status, cut.code, cut.message)
    except UnmaskError as error:
        refused = from_error(error)
        await _close(socket, 1011, refused.code, refused.message)
    except (RayError, TimeoutError, ValueError):
        await _close(socket, 1012, "SESSION_LOST", "The process that scored was lost; connect again.")
    finally:
        with suppress(Exception):
            if host is not None:
                host.forget.remote(opened["id"])
            await desk.plain("close_socket", opened["id"])


async def _close(socket: WebSocket, status: int, code: str, message: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):
        if code:
            await socket.send_text(json.dumps({"event": "error", "error": {"code": code, "message": message}}))
        await socket.close(status, code)
