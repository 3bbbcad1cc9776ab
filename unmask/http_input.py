"""Streams over HTTP: what libav reads goes through here, so that every address is looked at before it is connected to.

Playlists (HLS), their parts and redirects are all opened by `HttpInput.open`. Certificates are verified.
"""

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import httpx

from unmask.addresses import AddressPolicy
from unmask.errors import MediaError, Reason
from unmask.inputs import without_password

__all__ = ["HttpInput"]

_MOST_REDIRECTS = 5
_MOST_PLAYLIST_BYTES = 4 << 20
_PLAYLIST = b"#EXTM3U"
# How libav asks for a part of a playlist with METHOD=AES-128, and the cipher's block in bytes.
_ENCRYPTED, _BLOCK = "crypto+", 16
_BY_STATUS = {401: Reason.STREAM_AUTH_FAILED, 403: Reason.STREAM_AUTH_FAILED, 404: Reason.STREAM_NOT_FOUND}
_SENTENCES = {
    Reason.STREAM_AUTH_FAILED: "check user and password",
    Reason.STREAM_NOT_FOUND: "check the path",
    Reason.HTTP_STATUS: "try again later",
}


class HttpInput:
    """Opens URLs for one connection of a live source.

    Args:
        policy: Where it may connect to.
        open_timeout_s: For a connection to be made and answered, and for all that is read before `opened` is called.
        silence_s: For a server to say something.
        ca_file: Certificates to trust in place of the system's.
        is_stopping: Asked at every read: nothing more is wanted.

    Raises:
        MediaError: The certificates to trust cannot be read.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        open_timeout_s: float,
        silence_s: float,
        ca_file: Path | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._policy, self._open_timeout_s, self._is_stopping = policy, open_timeout_s, is_stopping
        self._deadline_s: float | None = time.monotonic() + open_timeout_s
        self._sockets: list[socket.socket] = []  # of all connections, which are used again
        trust = ssl.create_default_context(cafile=ca_file)
        self._client = httpx.Client(
            timeout=httpx.Timeout(silence_s, connect=open_timeout_s), verify=trust, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def opened(self) -> None:
        """The container is open: from now on only silence counts."""
        self._deadline_s = None

    def open(self, url: str, _flags: int = 0, options: dict[str, Any] | None = None) -> "_Body | _Decrypted":
        """What a URL leads to, as a file to read; redirects are followed, each one looked at first.

        Args:
            url: What libav asks for; "crypto+" before it is a playlist's part in AES-128.
            options: Of an encrypted part: "key" and "iv", 16 bytes each, in hexadecimal digits.

        Raises:
            MediaError: It may not be connected to, does not answer, or refuses.
        """
        if not url.startswith(_ENCRYPTED):
            return _Body(self, url)
        url = url.removeprefix(_ENCRYPTED)
        key, iv = (bytes.fromhex((options or {}).get(name, "")) for name in ("key", "iv"))
        if len(key) != _BLOCK or len(iv) != _BLOCK:
            raise MediaError(Reason.MEDIA_UNREADABLE, f"{without_password(url)} is encrypted and has no key of AES-128")
        return _Decrypted(_Body(self, url), key, iv)

    def _response(self, url: str, start: int) -> tuple[str, httpx.Response]:
        """The URL at the end of all redirects, and what it answers."""
        origin = urlsplit(url).netloc
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._sent(url, start, same_host=urlsplit(url).netloc == origin)
            if not response.has_redirect_location:
                return url, self._checked(url, response, start)
            response.close()
            url = urljoin(url, response.headers["Location"])
        raise MediaError(Reason.HTTP_STATUS, f"{without_password(url)} redirects without end; check the address")

    def _check_time(self, url: str) -> None:
        """A server that sends a byte now and then is never silent."""
        if self._is_stopping():
            raise MediaError(Reason.INTERRUPTED, f"{without_password(url)} is not wanted any more")
        if self._deadline_s is not None and time.monotonic() > self._deadline_s:
            raise _late(without_password(url))

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[threading.Event]:
        """For one answer up to its headers: connections are cut at the deadline, which is then told."""
        is_late, left_s = threading.Event(), self._open_timeout_s
        if self._deadline_s is not None:
            left_s = max(0.0, self._deadline_s - time.monotonic())
        self._sockets = [sock for sock in self._sockets if sock.fileno() >= 0]

        def cut() -> None:
            is_late.set()
            for sock in list(self._sockets):
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

        timer = threading.Timer(left_s, cut)
        timer.daemon = True
        timer.start()
        try:
            yield is_late
        finally:
            timer.cancel()

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.append(info["return_value"].get_extra_info("socket"))

    def _sent(self, url: str, start: int, *, same_host: bool) -> httpx.Response:
        shown, parts = without_password(url), urlsplit(url)
        if parts.scheme.lower() not in ("http", "https"):
            raise MediaError(Reason.ADDRESS_REFUSED, f"{shown} is named by a stream, and is no http(s) address")
        address = self._policy.check(url)
        headers = {"Range": f"bytes={start}-"} if start else {}
        extensions: dict[str, Any] = {"trace": self._trace}
        user = parts.username if same_host else None
        auth = (unquote(user), unquote(parts.password or "")) if user else None
        if address is not None:
            # The address that was looked at, not what the name leads to by now.
            headers["Host"] = parts.netloc.rpartition("@")[2]
            extensions["sni_hostname"] = parts.hostname
            at = f"[{address}]" if ":" in address else address
            url = urlunsplit(parts._replace(netloc=f"{at}:{parts.port}" if parts.port else at))
        self._check_time(url)
        with self._in_time() as is_late:
            try:
                request = self._client.build_request("GET", url, headers=headers, extensions=extensions)
                return self._client.send(request, stream=True, auth=auth)
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                raise _late(shown) if is_late.is_set() else _unreachable(shown, error) from None

    def _checked(self, url: str, response: httpx.Response, start: int) -> httpx.Response:
        if response.status_code == (206 if start else 200):
            return response
        response.close()
        reason = _BY_STATUS.get(response.status_code, Reason.HTTP_STATUS)
        answer = f"{response.status_code} {response.reason_phrase}".strip()
        raise MediaError(reason, f"{without_password(url)} answered {answer}; {_SENTENCES[reason]}")


def _unreachable(shown: str, error: Exception) -> MediaError:
    said = without_password(str(error)) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in said:
        message = f"{shown} shows a certificate that cannot be verified; trust its issuer with a CA file"
        return MediaError(Reason.STREAM_TLS_CERTIFICATE, message)
    if isinstance(error, httpx.TimeoutException):
        return _late(shown)
    return MediaError(Reason.STREAM_UNREACHABLE, f"{shown} cannot be reached ({said}); check the address")


def _late(shown: str) -> MediaError:
    return MediaError(Reason.STREAM_TIMEOUT, f"{shown} did not answer in time; check that it is there")


def _with_whole_urls(playlist: bytes, url: str) -> bytes:
    """A playlist (RFC 8216) whose parts are named by whole URLs: libav knows only where it first asked for it."""

    def whole(match: re.Match[str]) -> str:
        return f"{match[1]}{urljoin(url, match[2])}"

    text = re.sub(r'(\bURI=")([^"\r\n]*)', whole, playlist.decode("utf-8", "surrogateescape"))
    return re.sub(r"(?m)^([ \t]*)([^#\s][^\r\n]*)", whole, text).encode("utf-8", "surrogateescape")


class _Body:
    """The bytes behind a URL, as libav reads them. Seeks where the server can."""

    def __init__(self, http: HttpInput, url: str) -> None:
        self._http, self.url, self._at = http, url, 0
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._rest = b""
        headers = self._begin()
        self._length = int(headers.get("Content-Length") or 0)
        self._ranges = self._length > 0 and headers.get("Accept-Ranges", "").lower() == "bytes"

    def _begin(self) -> httpx.Headers:
        self.close()
        url, response = self._http._response(self.url, self._at)
        self._response, self._chunks, self._rest = response, response.iter_bytes(), b""
        if url != self.url and not self._at:
            return self._redirected(url, response.headers)
        return response.headers

    def _redirected(self, url: str, headers: httpx.Headers) -> httpx.Headers:
        begin = self._rest = self._next()
        while begin and len(self._rest) < len(_PLAYLIST):
            begin = self._next()
            self._rest += begin
        if not self._rest.startswith(_PLAYLIST):
            return headers
        while begin and len(self._rest) <= _MOST_PLAYLIST_BYTES:
            begin = self._next()
            self._rest += begin
        self._rest = _with_whole_urls(self._rest, url)
        return httpx.Headers()  # of another length, and read once

    def _next(self) -> bytes:
        """What comes next; nothing at the end."""
        self._http._check_time(self.url)
        shown = without_password(self.url)
        try:
            return next(self._chunks, b"")
        except httpx.TimeoutException:
            raise MediaError(Reason.STREAM_STALLED, f"{shown} stopped sending; it is opened again") from None
        except httpx.HTTPError:
            raise MediaError(Reason.STREAM_DISCONNECTED, f"{shown} broke off; it is opened again") from None

    def read(self, size: int) -> bytes:
        if self._response is None:
            self._begin()
        self._rest = self._rest or self._next()
        part, self._rest = self._rest[:size], self._rest[size:]
        self._at += len(part)
        return part

    def seekable(self) -> bool:
        return self._ranges

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self._length)[whence]
        if at != self._at:
            self.close()
            self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class _Decrypted:
    """A playlist's part in AES-128 (RFC 8216, 4.3.2.4: CBC, padded as PKCS #7), to be read once from its beginning."""

    def __init__(self, body: _Body, key: bytes, iv: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.padding import PKCS7

        self._body, self._rest, self._over = body, b"", False
        self._cipher, self._padding = (
            Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor(),
            PKCS7(8 * _BLOCK).unpadder(),
        )

    def read(self, size: int) -> bytes:
        while not self._rest and not self._over:
            self._rest = self._decrypted(self._body.read(max(size, _BLOCK)))
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def _decrypted(self, chunk: bytes) -> bytes:
        if chunk:
            return self._padding.update(self._cipher.update(chunk))
        self._over = True
        try:
            return self._padding.update(self._cipher.finalize()) + self._padding.finalize()
        except ValueError:
            shown = without_password(self._body.url)
            raise MediaError(
                Reason.STREAM_DISCONNECTED, f"{shown} ends before its end, or its key is another"
            ) from None

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self._body.close()
