"""Which network addresses may be connected to, so that a server is no door into the network behind it (SSRF)."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from unmask.errors import MediaError, Reason

__all__ = ["AddressPolicy", "refused_network", "without_password"]

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
# IPv6 networks in which an IPv4 address is hidden: 6to4 and NAT64. (Mapped ones and Teredo `ipaddress` knows.)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*://)(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")
# Names by which cameras, clouds and others take secrets in a URL's query, and some cameras in its path.
_SECRET = re.compile(
    r"(?<![a-z0-9])((?:user|access|auth|api|session|secret|shared)?"
    r"(?:password|passwd|passphrase|pass|pwd|pw|token|secret|key|signature|sig|credentials?|auth|authorization))"
    r"=[^&;/?#\s\"']*",
    re.IGNORECASE,
)


def without_password(url: str) -> str:
    """A URL without user and password, and with *** for secrets that stand in it by name; anything else as it is.

    A password may hold what it must not: where no host and port can stand before the first `/`, `?` or `#`, all up to
    the last `@` is left out.
    """
    match = _SCHEME.fullmatch(url)
    if match is None:
        return url
    scheme, rest = match.groups()
    end = len(re.split(r"[/?#]", rest, maxsplit=1)[0])
    host = rest[:end].rpartition("@")[2]
    rest = host + rest[end:] if _HOST.fullmatch(host) else rest.rpartition("@")[2]
    if scheme.lower().startswith(("rtsp", "http")):
        return scheme + _SECRET.sub(r"\1=***", rest)
    path, query, named = rest.partition("?")  # in a bucket, folders may be called so
    return scheme + path + query + _SECRET.sub(r"\1=***", named)


def refused_network(address: str) -> str | None:
    """What kind of network an address lies in, where that is not the public one.

    Args:
        address: IPv4 or IPv6, as digits; a zone (`%eth0`) is passed over.

    Returns:
        "loopback", "link-local", "private", "multicast", "unspecified" or "reserved"; None for a public address. An
        IPv4 address inside an IPv6 one (mapped, 6to4, NAT64, Teredo) counts as what it is.

    Raises:
        ValueError: It is no address.
    """
    ip = _inner(ipaddress.ip_address(address.partition("%")[0]))
    kinds = (
        ("unspecified", ip.is_unspecified),
        ("loopback", ip.is_loopback),
        ("link-local", ip.is_link_local),
        ("multicast", ip.is_multicast),
        ("private", ip.is_private or (isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local)),
        ("reserved", ip.is_reserved or not ip.is_global),
    )
    return next((kind for kind, applies in kinds if applies), None)


def _inner(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    hidden = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
    if hidden is None and (ip in _NAT64 or (int(ip) >> 32 == 0 and int(ip) > 1)):
        hidden = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return hidden or ip


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPolicy:
    """What may be connected to.

    The user's own machine may connect anywhere. A server, which connects where strangers tell it to, refuses all but
    public addresses unless its operator allows the others.
    """

    allow_private: bool = True
    """Whether addresses that are not public may be connected to."""

    def check(self, url: str) -> str | None:
        """Look a URL's host up, and refuse it if any of its addresses is not allowed.

        Returns:
            The address to connect to, in place of the name, which could lead elsewhere the next time it is looked up;
            None where everything is allowed, and nothing was looked up.

        Raises:
            MediaError: ADDRESS_REFUSED for an address that is not allowed or a URL without a host;
                STREAM_UNREACHABLE for a host that has no address.
        """
        if self.allow_private:
            return None
        shown, addresses = without_password(url), _resolved(url)
        for address in addresses:
            kind = refused_network(address)
            if kind is not None:
                raise MediaError(
                    Reason.ADDRESS_REFUSED,
                    f"{shown} leads to a {kind} address, which this server does not connect to; its operator can "
                    "allow private networks",
                )
        return addresses[0]


def _resolved(url: str) -> list[str]:
    shown = without_password(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme.lower(), 0)
    except ValueError:
        host, port = None, 0
    if not host:
        raise MediaError(Reason.ADDRESS_REFUSED, f"{shown} names no host; check the address")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise MediaError(Reason.STREAM_UNREACHABLE, f"{shown}: its host has no address; check the name") from None
    return [str(info[4][0]) for info in found]
