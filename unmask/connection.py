"""One connection to a live source: opened within a time, read packet by packet, with every failure named.

How long nothing may come is bounded everywhere, because a socket does not say that a camera is gone. What libav says of
lost packets and damaged slices goes to its log and nowhere else: it is read there, and pictures are held for damaged
until the next one that stands alone.
"""

import errno
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import av
from av.container import InputContainer
from av.error import ExitError, FFmpegError, HTTPForbiddenError, HTTPNotFoundError, HTTPUnauthorizedError
from av.stream import Discard
from av.video.stream import VideoStream

from unmask.addresses import AddressPolicy
from unmask.errors import MediaError, Reason, UsageError
from unmask.flow import Flow, Picture, listen, tells_of_damage
from unmask.http_input import HttpInput
from unmask.inputs import without_password
from unmask.relay import RtspRelay
from unmask.sampler import Sampler

__all__ = ["Connection", "Kind", "Limits", "kind_of"]

# Containers only, and HLS; each of a playlist's parts goes through `HttpInput`.
_WEB_FORMATS = "hls,mpegts,mov,mp4,m4a,matroska,webm,flv,live_flv,mpjpeg,mjpeg,ogg,avi,h264,hevc,aac,mp3,webvtt"
_FILE_FORMATS = "mov,mp4,m4a,3gp,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,h264,hevc,mjpeg,ivf,gif,m4v"
# A playlist's parts come at intervals.
_HLS_STALL_S = 15.0
_GIVE = "give rtsp(s)://, http(s)://, a device (/dev/video0) or a file"
_PORT, _TLS_PORT = 554, 322
_BROKEN_PIPE = (errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED)


class Kind(StrEnum):
    """What an address names."""

    RTSP = "rtsp"
    HTTP = "http"
    DEVICE = "device"
    FILE = "file"


def kind_of(address: str) -> Kind:
    """What an address names.

    Raises:
        UsageError: Nothing that can be played.
        MediaError: A file that does not exist.
    """
    scheme, separator, _ = address.partition("://")
    if separator:
        kinds = {"rtsp": Kind.RTSP, "rtsps": Kind.RTSP, "http": Kind.HTTP, "https": Kind.HTTP}
        if scheme.lower() in kinds:
            _check_url(address)
            return kinds[scheme.lower()]
        raise UsageError(f"{without_password(address)}: {scheme} is not known; {_GIVE}")
    if address.startswith("/dev/video"):
        return Kind.DEVICE
    if not Path(address).is_file():
        raise MediaError(Reason.MISSING_FILE, f"{address} does not exist; {_GIVE}")
    return Kind.FILE


def _check_url(address: str) -> None:
    """What `urllib` cannot read it would quote, password and all, wherever it is read."""
    try:
        parts = urlsplit(address)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise UsageError(
            f"{without_password(address)} has no host and port that can be read; write it as scheme://host:port/path, "
            "and /, ?, # and @ in a password as %2F, %3F, %23 and %40"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a source may take, and whom it may trust."""

    open_timeout_s: float = 5.0
    """For a connection to be made and its first packets to come."""
    stall_s: float = 2.0
    """A live connection that is silent for so long has stalled."""
    transport: str = "tcp"
    """How RTSP's packets travel: tcp or udp. Always tcp where private addresses are refused."""
    ca_file: Path | None = None
    """Certificates to trust in place of the system's."""


class Connection:
    """An open source. Close it, or use it in a `with`; only one thread may use it.

    Args:
        address: What to open.
        limits: How long it may take.
        policy: Where it may connect to.
        is_stopping: Asked while it is opened: it is not wanted any more.

    Raises:
        MediaError: It cannot be opened; the reason says why.
        UsageError: The address names nothing that can be played.
    """

    def __init__(
        self, address: str, limits: Limits, policy: AddressPolicy, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.kind = kind_of(address)
        self.shown = without_password(address)
        self._address, self._limits, self._policy, self._is_stopping = address, limits, policy, is_stopping
        self._http: HttpInput | None = None
        self._relay: RtspRelay | None = None
        listen()
        self._log = av.logging.Capture(local=True)
        self._said = self._log.__enter__()
        self._container: InputContainer | None = None
        try:
            self._container, self._stream = self._opened()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; in the thread that opened it."""
        container, self._container = self._container, None
        if container is not None:
            container.close()
        if self._http is not None:
            self._http.close()
        if self._relay is not None:
            self._relay.close()
        if self._log is not None:
            self._log.__exit__(None, None, None)
            self._log = None  # type: ignore[assignment]

    @property
    def is_finite(self) -> bool:
        """Whether it has an end, at which nothing is wrong."""
        container = self._container
        assert container is not None
        return self.kind == Kind.FILE or (self.kind == Kind.HTTP and bool(container.duration))

    @property
    def needs_pace(self) -> bool:
        """Whether it gives pictures faster than they are to be shown."""
        return self.kind in (Kind.FILE, Kind.HTTP)

    def media(self) -> dict[str, Any]:
        """What it sends: container, codec, pixel_format, width, height, rate_fps (None where nothing says)."""
        assert self._container is not None
        context, rate = self._stream.codec_context, self._stream.average_rate
        return {
            "container": self._container.format.name,
            "codec": context.codec.canonical_name,
            "pixel_format": context.pix_fmt,
            "width": context.width,
            "height": context.height,
            "rate_fps": round(float(rate), 3) if rate else None,
        }

    # --- opening ----------------------------------------------------------------------------------------------------

    def _opened(self) -> tuple[InputContainer, VideoStream]:
        started = time.monotonic()
        try:
            container = self._open(quickly=self.kind == Kind.RTSP)
            if self.kind == Kind.RTSP and not _knows_size(container):
                container.close()
                left_s = self._limits.open_timeout_s - (time.monotonic() - started)
                container = self._open(quickly=False, timeout_s=max(left_s, 0.1))
        except (FFmpegError, OSError, ValueError) as error:
            raise self._refusal(error, time.monotonic() - started) from None
        try:
            return container, self._video(container)
        except BaseException:
            container.close()
            raise

    def _open(self, *, quickly: bool, timeout_s: float | None = None) -> InputContainer:
        limits, options = self._limits, dict[str, str]()
        timeout = (timeout_s or limits.open_timeout_s, limits.stall_s)
        if self.kind == Kind.FILE:
            return av.open(f"file:{self._address}", container_options={"format_whitelist": _FILE_FORMATS})
        if self.kind == Kind.DEVICE:
            return av.open(self._address, format="v4l2", timeout=timeout)
        if self.kind == Kind.HTTP:
            self._http = self._http or HttpInput(
                self._policy,
                open_timeout_s=limits.open_timeout_s,
                silence_s=limits.stall_s,
                ca_file=limits.ca_file,
                is_stopping=self._is_stopping,
            )
            options = {"format_whitelist": _WEB_FORMATS, "http_persistent": "0"}
            timeout = (timeout[0], max(limits.stall_s, _HLS_STALL_S))
            container = av.open(self._address, container_options=options, timeout=timeout, io_open=self._http.open)
            self._http.opened()
            return container
        return self._open_rtsp(*timeout, quickly=quickly)

    def _open_rtsp(self, open_s: float, stall_s: float, *, quickly: bool) -> InputContainer:
        started_s, limits = time.monotonic(), self._limits
        options = {"rtsp_transport": limits.transport}
        if quickly:
            options |= {"analyzeduration": "0", "probesize": "32"}
        url = self._address
        address = self._policy.check(url)
        if address is not None:
            options["rtsp_transport"] = "tcp"
            url = self._relayed(address, open_s)
        elif url.lower().startswith("rtsps:"):
            options |= {"tls_verify": "1", "ca_file": str(limits.ca_file or _system_ca())}
        left_s = max(open_s - (time.monotonic() - started_s), 0.1)
        return av.open(url, options=options, timeout=(left_s, stall_s))

    def _relayed(self, address: str, timeout_s: float) -> str:
        """The URL by way of a relay to the address that was looked at: libav itself would follow redirects."""
        if self._relay is not None:
            self._relay.close()
        parts = urlsplit(self._address)
        is_tls = parts.scheme.lower() == "rtsps"
        self._relay = RtspRelay(
            (address, parts.port or (_TLS_PORT if is_tls else _PORT)),
            trust=self._trust() if is_tls else None,
            name=parts.hostname or "",
            timeout_s=timeout_s,
        )
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(scheme="rtsp", netloc=f"{user}{at}127.0.0.1:{self._relay.port}"))

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._limits.ca_file or _system_ca())

    def _video(self, container: InputContainer) -> VideoStream:
        streams = [s for s in container.streams if isinstance(s, VideoStream)]
        if not streams:
            raise MediaError(Reason.MEDIA_UNREADABLE, f"{self.shown} sends no pictures; check the address")
        stream = streams[0]
        context: object | None = stream.codec_context  # None without a decoder, which PyAV's stubs do not say
        if context is None:
            message = f"{self.shown} is in a codec without a decoder here; set the source to H.264"
            raise MediaError(Reason.STREAM_CODEC_UNSUPPORTED, message)
        if not stream.codec_context.width and self.kind == Kind.RTSP:
            raise MediaError(Reason.STREAM_TIMEOUT, f"{self.shown} sent no picture in time; check the source")
        stream.codec_context.thread_count = 1
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        return stream

    def _refusal(self, error: Exception, took_s: float) -> MediaError:
        """Why it cannot be opened."""
        shown = self.shown
        if self._relay is not None and self._relay.has_redirected:
            message = f"{shown} leads elsewhere, which is not followed here; give the address that it leads to"
            return MediaError(Reason.ADDRESS_REFUSED, message)
        if isinstance(error, HTTPUnauthorizedError | HTTPForbiddenError):
            return MediaError(Reason.STREAM_AUTH_FAILED, f"{shown} refuses this user and password; check them")
        if isinstance(error, HTTPNotFoundError):
            return MediaError(Reason.STREAM_NOT_FOUND, f"{shown} is not known there; check the path")
        if isinstance(error, ExitError | TimeoutError) or took_s >= self._limits.open_timeout_s - 0.1:
            within = f"{self._limits.open_timeout_s:g} s"
            return MediaError(Reason.STREAM_TIMEOUT, f"{shown} did not answer within {within}; check that it is there")
        if isinstance(error, ssl.SSLCertVerificationError) or self._has_bad_certificate():
            message = f"{shown} shows a certificate that cannot be verified; trust its issuer with a CA file"
            return MediaError(Reason.STREAM_TLS_CERTIFICATE, message)
        if self.kind == Kind.DEVICE:
            return MediaError(Reason.STREAM_UNREACHABLE, f"{shown} cannot be opened; check that the camera is free")
        if isinstance(error, OSError):
            return MediaError(Reason.STREAM_UNREACHABLE, f"{shown} cannot be reached; check that it is there")
        return MediaError(Reason.MEDIA_UNREADABLE, f"{shown} sends no video that can be read; check it")

    def _has_bad_certificate(self) -> bool:
        """Whether it is that, where TLS is libav's, which says only that it failed."""
        parts = urlsplit(self._address)
        if parts.scheme.lower() != "rtsps" or self._relay is not None:
            return False
        where = (parts.hostname or "", parts.port or _TLS_PORT)
        try:
            with (
                closing(socket.create_connection(where, self._limits.open_timeout_s)) as sock,
                self._trust().wrap_socket(sock, server_hostname=parts.hostname),
            ):
                return False
        except ssl.SSLCertVerificationError:
            return True
        except (OSError, ValueError):  # the name can be no server's
            return False

    # --- reading ----------------------------------------------------------------------------------------------------

    def pictures(self, sampler: Sampler, is_stopping: Callable[[], bool]) -> Iterator[Picture]:
        """The pictures that are due, in the order of presentation, to the end of the connection.

        Args:
            sampler: Says which are due.
            is_stopping: Asked at every packet.

        Raises:
            MediaError: STREAM_STALLED or STREAM_DISCONNECTED; nothing for the end of what has one.
        """
        flow = Flow(self._stream, sampler, self._damage)
        try:
            for packet in self._packets():
                if is_stopping():
                    return
                yield from flow.decode(packet)
                self._look_for_silence(flow)
        except MediaError:
            raise
        except ExitError:
            raise self._stalled() from None
        except (FFmpegError, OSError, ValueError) as error:
            raise self._broke_off(error) from None
        if not self.is_finite:
            raise MediaError(Reason.STREAM_DISCONNECTED, f"{self.shown} ended the connection; it is opened again")

    def _packets(self) -> Iterator[Any]:
        assert self._container is not None
        self._said.clear()
        is_live, asked_s = self.kind in (Kind.RTSP, Kind.DEVICE), time.monotonic()
        for packet in self._container.demux(self._stream):
            # A read that times out first gives what the parser still holds, and only the next one fails.
            if is_live and time.monotonic() - asked_s > 0.98 * self._limits.stall_s:
                raise self._stalled()
            yield packet
            asked_s = time.monotonic()

    def _look_for_silence(self, flow: Flow) -> None:
        """Packets that become no pictures are no sign of life."""
        if self.kind in (Kind.RTSP, Kind.DEVICE) and time.monotonic() - flow.shown_s > self._limits.open_timeout_s:
            raise self._stalled()

    def _stalled(self) -> MediaError:
        return MediaError(
            Reason.STREAM_STALLED, f"{self.shown} sent nothing for {self._limits.stall_s:g} s; it is opened again"
        )

    def _broke_off(self, error: Exception) -> MediaError:
        if self.is_finite and not (isinstance(error, OSError) and error.errno in _BROKEN_PIPE):
            return MediaError(Reason.MEDIA_UNREADABLE, f"{self.shown} is damaged and cannot be read on; mend it")
        return MediaError(Reason.STREAM_DISCONNECTED, f"The connection to {self.shown} broke; it is opened again")

    def _damage(self) -> bool:
        """Whether libav has complained since the last time of asking."""
        if not self._said:
            return False
        damage = any(tells_of_damage(*entry) for entry in self._said)
        self._said.clear()
        return damage


def _knows_size(container: InputContainer) -> bool:
    streams = [s for s in container.streams if isinstance(s, VideoStream)]
    return all(s.codec_context is None or s.codec_context.width for s in streams)


def _system_ca() -> str:
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return paths.cafile
    import certifi

    return certifi.where()
