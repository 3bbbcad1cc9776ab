"""Between libav and an RTSP server that a stranger named: to the address that was looked at, and nowhere else.

libav follows redirects of RTSP by itself, and asks nobody whether it may connect there. So it is given a port of this
machine, behind which each byte is passed on to the one address that the policy allowed. An answer that redirects is not
passed on: the connection ends. TLS ends here too, so that answers can be read; certificates are verified as elsewhere.
"""

import contextlib
import re
import select
import socket
import ssl
import threading
from typing import Self

__all__ = ["RtspRelay"]

# A status line whose status libav could take for a redirection: it reads numbers leniently, signs and zeros before
# them, and finds lines wherever it believes that a message begins. What is not plainly another status counts.
_REDIRECTS = re.compile(rb"RTSP/[^ \t\n]*[ \t]+(?![1245]\d\d[ \t\n])[\v\f]*[+-]?\d[^ \t\n]*[ \t\n]")
_MOST_HELD = 1 << 16
_CHUNK = 1 << 16
_LAST_WORDS_S = 0.2


class RtspRelay:
    """Connects to an RTSP server and passes on what one client says, who connects to `port` of 127.0.0.1.

    Args:
        address: The server's, as digits, and its port.
        trust: For TLS: the certificates to trust; None without TLS.
        name: By which name the server's certificate is verified.
        timeout_s: For the connection to be made.

    Attributes:
        port: For the client; RTP must travel by TCP, within the connection.
        has_redirected: The server wanted to send the client elsewhere, and was cut off.

    Raises:
        OSError: It cannot be connected to; `ssl.SSLCertVerificationError` where its certificate cannot be verified.
        ValueError: The name can be no server's.
    """

    def __init__(self, address: tuple[str, int], *, trust: ssl.SSLContext | None, name: str, timeout_s: float) -> None:
        self.has_redirected = False
        self._server = _connected(address, trust, name, timeout_s)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._listener.settimeout(timeout_s)
        self.port: int = self._listener.getsockname()[1]
        self._client: socket.socket | None = None
        self._is_closed = False
        self._held = b""  # of the line that the server has begun
        self._plays = False
        self._thread = threading.Thread(target=self._run, name="unmask-relay", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End both connections. The client has ended its own, and what it said last is passed on."""
        self._thread.join(_LAST_WORDS_S if self._client is not None else 0.0)
        self._is_closed = True
        for sock in (self._listener, self._server, self._client):
            _end(sock)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._client, _ = self._listener.accept()
            self._listener.close()
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poll = select.poll()  # files may be many, which `select` cannot tell apart
            poll.register(self._client, select.POLLIN)
            poll.register(self._server, select.POLLIN)
            while not self._is_closed and self._passed_on(self._client, {fd for fd, _ in poll.poll()}):
                pass
        except (OSError, ValueError):  # ended by either side, or by `close`
            pass
        finally:
            for sock in (self._listener, self._server, self._client):
                _end(sock)
                if sock is not None:
                    sock.close()

    def _passed_on(self, client: socket.socket, ready: set[int]) -> bool:
        """Pass on what came; whether both connections are still there."""
        if client.fileno() in ready:
            asked = client.recv(_CHUNK)
            if not asked:
                return False
            # After that libav follows no answer any more. It sends one request at a time.
            self._plays = self._plays or asked.startswith(b"PLAY ")
            self._server.sendall(asked)
        if self._server.fileno() in ready:
            said = self._said()
            if said is not None:
                if not said or self._is_redirected(said):
                    return False
                client.sendall(said)
        return True

    def _said(self) -> bytes | None:
        """What the server says, nothing at its end; None where that was TLS's own.

        Tickets for a later session come right after the handshake: a read that waits for more would keep back the
        client's request, which the server waits for.
        """
        said = b""
        self._server.settimeout(0)
        try:
            said = self._server.recv(_CHUNK)
            while said and isinstance(self._server, ssl.SSLSocket) and self._server.pending():
                said += self._server.recv(_CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return said or None
        finally:
            self._server.settimeout(None)
        return said

    def _is_redirected(self, said: bytes) -> bool:
        if self._plays:
            return False
        self._held += said.replace(b"\r", b"")
        self.has_redirected = _REDIRECTS.search(self._held) is not None
        self._held = self._held[self._held.rfind(b"\n") + 1 :]
        return self.has_redirected or len(self._held) > _MOST_HELD


def _connected(
    address: tuple[str, int], trust: ssl.SSLContext | None, name: str, timeout_s: float
) -> socket.socket | ssl.SSLSocket:
    sock = socket.create_connection(address, timeout_s)
    try:
        if trust is not None:
            sock = trust.wrap_socket(sock, server_hostname=name)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _end(sock: socket.socket | None) -> None:
    if sock is not None:
        with contextlib.suppress(OSError):
            # An SSLSocket would forget its TLS, and the other thread read on in cipher.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
