"""What stands between libav and an RTSP server that could send it elsewhere."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rtsp_server import certificate
from unmask.relay import RtspRelay

OPTIONS = b"OPTIONS rtsp://cam/1 RTSP/1.0\r\nCSeq: 1\r\n\r\n"


@contextlib.contextmanager
def between() -> Iterator[tuple[RtspRelay, socket.socket, socket.socket]]:
    """A relay, its client and its server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = RtspRelay(listener.getsockname(), trust=None, name="", timeout_s=5.0)
        server, _ = listener.accept()
        with relay, server, socket.create_connection(("127.0.0.1", relay.port), 5.0) as client:
            server.settimeout(5.0)
            yield relay, client, server


def said(sock: socket.socket) -> bytes:
    """All up to the end."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def test_a_request_passes_though_tickets_of_tls_came_first(tmp_path: Path) -> None:
    """The server speaks first, of TLS's own; whoever waits for what follows it keeps the client's request back."""
    pair = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    assert context.num_tickets > 0
    trust, greeted, asked = ssl.create_default_context(cafile=str(pair[0])), threading.Event(), list[bytes]()

    def serve(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        plain.settimeout(5.0)
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as server:
            greeted.set()
            asked.append(server.recv(1000))
            server.sendall(b"RTSP/1.0 200 OK\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        relay = RtspRelay(listener.getsockname(), trust=trust, name="127.0.0.1", timeout_s=5.0)
        with relay, socket.create_connection(("127.0.0.1", relay.port), 5.0) as client:
            assert greeted.wait(5.0)
            relay._thread.join(0.2)  # it is with the tickets by then, and does not end
            client.sendall(OPTIONS)
            assert said(client) == b"RTSP/1.0 200 OK\r\n\r\n"
        thread.join(10.0)
    assert asked == [OPTIONS]


@pytest.mark.parametrize(
    "answer",
    [
        b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nServer: RTSP/1.0\r\n\r\n",
        b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\nServer: RTSP/1.0 Camera\r\n\r\n",
        b"RTSP/1.0 200 OK\r\nContent-Length: 19\r\n\r\nv=0\r\ns=302 RTSP/ 300",
    ],
)
def test_what_leads_nowhere_is_passed_on(answer: bytes) -> None:
    with between() as (relay, client, server):
        client.sendall(OPTIONS)
        assert server.recv(1000) == OPTIONS
        for byte in answer:  # however it is cut
            server.sendall(bytes([byte]))
        server.shutdown(socket.SHUT_WR)
        assert said(client) == answer
        assert not relay.has_redirected


@pytest.mark.parametrize(
    "status",
    [
        b"RTSP/1.0 302 Moved",
        b"RTSP/1.0 301",
        b"RTSP/1.0 0302 x",
        b"RTSP/1.0 +302 x",
        b"RTSP/1.0 4294967598 x",
        b"RTSP/1.0\t\t302\tx",
        b"RT\rSP/1.0 3\r02 x",
        b"RTSP/ 302",
        b"$\0\0\3abcRTSP/1.0 302 x",
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_redirections_are_not_passed_on_however_they_are_written(status: bytes, at_once: bool) -> None:
    answer = b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n" + status + b"\r\nLocation: rtsp://10.0.0.1/\r\n\r\n"
    with between() as (relay, client, server):
        client.sendall(OPTIONS)
        server.recv(1000)
        with contextlib.suppress(ConnectionError):
            for part in [answer] if at_once else [bytes([byte]) for byte in answer]:
                server.sendall(part)
        heard = said(client)
        assert b"Location" not in heard
        assert heard.count(b"\n") <= 3
        assert relay.has_redirected


def test_media_are_passed_on_whatever_they_look_like() -> None:
    media = (b"$\0\0\x20RTSP/1.0 302 x\r\n\r\n" + bytes(14)) * 5000
    with between() as (relay, client, server):
        client.sendall(b"PLAY rtsp://cam/1 RTSP/1.0\r\nCSeq: 4\r\n\r\n")
        assert server.recv(1000).startswith(b"PLAY ")
        sender = threading.Thread(target=server.sendall, args=(media,))
        sender.start()
        heard = b""
        while len(heard) < len(media):
            heard += client.recv(1 << 16)
        sender.join()
        assert heard == media
        assert not relay.has_redirected


def test_a_line_without_end_is_not_kept() -> None:
    with between() as (_, client, server):
        client.sendall(OPTIONS)
        with contextlib.suppress(ConnectionError):
            server.sendall(bytes(1 << 20))
        assert len(said(client)) < 1 << 20


def test_what_is_said_last_is_passed_on() -> None:
    with between() as (relay, client, server):
        client.sendall(OPTIONS)
        server.recv(1000)
        client.sendall(b"TEARDOWN")
        client.close()
        relay.close()
        assert said(server) == b"TEARDOWN"
        assert not any(thread.name == "unmask-relay" for thread in threading.enumerate())
