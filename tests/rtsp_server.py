"""An RTSP camera that goes wrong on command: it plays clips for ever, over TCP or UDP, with or without TLS.

H.264 in RTP (RFC 6184) over RTSP (RFC 2326). Faults are switched while it runs: drop, reset, stall, silence, refusal,
loss of packets, another clip (and so another resolution). Every wait ends when the server closes.
"""

import base64
import contextlib
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

__all__ = ["Camera", "certificate", "filming"]

_MTU = 1200
_CLOCK_HZ = 90_000


@dataclass(frozen=True)
class _Unit:
    """One coded picture: when it is sent and shown, in seconds, and its NAL units."""

    dts_s: float
    pts_s: float
    nals: list[bytes]


def _units(clip: Path) -> tuple[list[_Unit], float]:
    """The pictures of an H.264 clip, parameter sets in band, and how long it lasts."""
    with av.open(clip) as container:
        stream = container.streams.video[0]
        annex_b = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        base, units = float(stream.time_base), []
        for packet in container.demux(stream):
            if packet.dts is None:
                continue
            times = float(packet.dts * base), float(packet.pts * base)
            for filtered in annex_b.filter(packet):
                data = bytes(filtered).replace(b"\0\0\0\1", b"\0\0\1")
                units.append(_Unit(*times, [nal for nal in data.split(b"\0\0\1") if nal]))
        rate = float(stream.average_rate)
    first = units[0].dts_s
    return [_Unit(u.dts_s - first, u.pts_s - first, u.nals) for u in units], len(units) / rate


def _payloads(nals: list[bytes]) -> Iterator[tuple[bool, bytes]]:
    """RTP payloads of one picture, each with whether it is the last."""
    for n, nal in enumerate(nals):
        last = n == len(nals) - 1
        if len(nal) <= _MTU:
            yield last, nal
            continue
        parts = [nal[k : k + _MTU] for k in range(1, len(nal), _MTU)]
        for k, part in enumerate(parts):
            ends = k == len(parts) - 1
            head = (0x80 if k == 0 else 0) | (0x40 if ends else 0) | nal[0] & 0x1F
            yield last and ends, bytes([nal[0] & 0xE0 | 28, head]) + part


class _Client:
    """One connection."""

    def __init__(self, camera: "Camera", sock: socket.socket) -> None:
        self.camera, self.sock = camera, sock
        self.udp: tuple[socket.socket, tuple[str, int]] | None = None
        self.sending = threading.Lock()
        self.player: threading.Thread | None = None
        self.ended = threading.Event()

    def serve(self) -> None:
        try:
            while True:
                head = self._exactly(1)
                if head == b"$":
                    self._exactly(struct.unpack(">xH", self._exactly(3))[0])
                    continue
                while not head.endswith(b"\r\n\r\n"):
                    head += self._exactly(1)
                if not self.answer(head.decode()):
                    return
        except (OSError, EOFError):
            pass
        finally:
            self.ended.set()
            if self.player is not None:
                self.player.join()
            if self.udp is not None:
                self.udp[0].close()
            with contextlib.suppress(OSError):
                self.sock.close()
            self.camera.forget(self)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def answer(self, request: str) -> bool:
        line, *rest = request.split("\r\n")
        method, url, _ = line.split()
        headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in rest)}
        status, extra, body = "200 OK", "", b""
        camera = self.camera
        if camera.silent:
            self.ended.wait()
            return False
        if camera.password and headers.get("authorization") != camera.expected:
            status, extra = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
        elif camera.path not in url:
            status = "404 Not Found"
        elif camera.status:
            status = camera.status
        elif method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n"
        elif method == "DESCRIBE":
            body = camera.description()
            extra = f"Content-Base: {url}/\r\nContent-Type: application/sdp\r\n"
        elif method == "SETUP":
            extra = f"Transport: {self.transport(headers['transport'])}\r\nSession: 1;timeout=60\r\n"
        elif method == "PLAY":
            extra = "Session: 1\r\n"
        reply = f"RTSP/1.0 {status}\r\nCSeq: {headers.get('cseq')}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
        with self.sending:
            self.sock.sendall(reply.encode() + body)
        if method == "PLAY" and status == "200 OK":
            self.player = threading.Thread(target=self.play)
            self.player.start()
        return method != "TEARDOWN"

    def transport(self, wanted: str) -> str:
        if "TCP" in wanted:
            return "RTP/AVP/TCP;unicast;interleaved=0-1"
        ports = wanted.partition("client_port=")[2].split(";")[0]
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.bind(("127.0.0.1", 0))
        self.udp = sender, (self.sock.getpeername()[0], int(ports.split("-")[0]))
        mine = sender.getsockname()[1]
        return f"RTP/AVP;unicast;client_port={ports};server_port={mine}-{mine + 1}"

    def play(self) -> None:
        """Send the clip over and over, each picture at its time."""
        sequence, started, played_s = 0, time.monotonic(), 0.0
        camera = self.camera
        with contextlib.suppress(OSError):
            while not self.ended.is_set():
                units, length_s = camera.units, camera.length_s
                for unit in units:
                    if self.ended.wait(max(0.0, started + played_s + unit.dts_s - time.monotonic())):
                        return
                    stalled = time.monotonic()
                    while camera.stalled and not self.ended.wait(0.01):
                        pass
                    started += time.monotonic() - stalled
                    stamp = int((played_s + unit.pts_s) * _CLOCK_HZ) & 0xFFFFFFFF
                    for is_last, payload in _payloads(unit.nals):
                        head = struct.pack(">BBHII", 0x80, (0x80 if is_last else 0) | 96, sequence & 0xFFFF, stamp, 7)
                        sequence += 1
                        self.send(head + payload)
                    if units is not camera.units:
                        break
                played_s = time.monotonic() - started if units is not camera.units else played_s + length_s

    def send(self, packet: bytes) -> None:
        if self.camera.random.random() < self.camera.loss:
            self.camera.lost += 1
            return
        if self.udp is not None:
            self.udp[0].sendto(packet, self.udp[1])
            return
        with self.sending:
            self.sock.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)

    def end(self, *, reset: bool) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            if reset:
                # Closed by its own thread, with what is unsent thrown away: that sends a RST.
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.sock.shutdown(socket.SHUT_RD)
            else:
                self.sock.shutdown(socket.SHUT_RDWR)


class Camera:
    """A camera and its faults.

    Attributes:
        stalled: It keeps its connections and sends nothing.
        silent: It takes connections and never answers.
        status: It answers every request with this in place of what was asked for.
        loss: Share of RTP packets that it does not send.
        connections: How many there have been.
    """

    def __init__(
        self, clip: Path, *, password: str = "", path: str = "/cam", tls: tuple[Path, Path] | None = None
    ) -> None:
        self.units, self.length_s = _units(clip)
        self.password, self.path = password, path
        self.expected = "Basic " + base64.b64encode(password.encode()).decode()
        self.stalled = self.silent = False
        self.status, self.loss, self.lost, self.connections = "", 0.0, 0, 0
        self.random = random.Random(0)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if self._tls and tls:
            self._tls.load_cert_chain(*tls)
        self._clients: dict[_Client, threading.Thread] = {}
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def url(self, *, password: str | None = None, path: str | None = None) -> str:
        """Where it is; with a user and password if given."""
        scheme = "rtsps" if self._tls else "rtsp"
        at = f"{password}@" if password else ""
        return f"{scheme}://{at}127.0.0.1:{self.port}{self.path if path is None else path}"

    def plug_in(self) -> None:
        """Be there, on the same port as before."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, args=(self._listener,))
        self._thread.start()

    def unplug(self, *, reset: bool = False) -> None:
        """Be gone: connections end, new ones are refused."""
        if self._listener is not None and self._thread is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._listener.close()
            self._listener = None
        self.drop(reset=reset)

    def drop(self, *, reset: bool = False) -> None:
        """End all connections, with a FIN or a RST."""
        with self._lock:
            clients = dict(self._clients)
        for client, thread in clients.items():
            client.end(reset=reset)
            thread.join()

    def show(self, clip: Path) -> None:
        """Play another clip from now on."""
        self.units, self.length_s = _units(clip)

    def description(self) -> bytes:
        sets = [nal for nal in self.units[0].nals if nal[0] & 0x1F in (7, 8)]
        coded = ",".join(base64.b64encode(nal).decode() for nal in sets)
        return (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\n"
            f"c=IN IP4 0.0.0.0\r\na=rtpmap:96 H264/{_CLOCK_HZ}\r\n"
            f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={coded}\r\na=control:track1\r\n"
        ).encode()

    def forget(self, client: _Client) -> None:
        with self._lock:
            self._clients.pop(client, None)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(sock,)).start()

    def _greet(self, sock: socket.socket) -> None:
        self.connections += 1
        if self._tls:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        client = _Client(self, sock)
        with self._lock:
            self._clients[client] = threading.current_thread()
        client.serve()


@contextlib.contextmanager
def filming(clip: Path, *, password: str = "", tls: tuple[Path, Path] | None = None) -> Iterator[Camera]:
    """A camera that is plugged in for as long as the block lasts."""
    camera = Camera(clip, password=password, tls=tls)
    camera.plug_in()
    try:
        yield camera
    finally:
        camera.stalled = False
        camera.unplug()


def certificate(folder: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """A self-signed certificate for an address, and its key."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=IP:{name} "
        f"-addext basicConstraints=critical,CA:TRUE -out {paths[0]} -keyout {paths[1]}".split(),
        check=True,
        capture_output=True,
    )
    return paths
