"""The way from a site to others: straight, or through its own HTTP proxy by CONNECT (RFC 9110).

The proxy sees the address that is dialled and TLS that it cannot read. What the environment says
about proxies is never looked at.
"""

import base64
import io
import re
import socket
import time
from email.message import Message
from http.client import HTTPException, parse_headers

from openfed.errors import TransportError
from openfed.parse import Proxy, join_address

NEAR_S = 3.0
"""How long a proxy may take to be connected to: it is in the site's own network."""
_MOST_HEAD = 16 << 10
_STATUS = re.compile(r"HTTP/1\.[01] ([0-9]{3})(?: ([^\r\n]*))?\r\n")
_NOT_CONNECT = 501
"""The one status above 500 that says nothing about what is dialled."""


def connect(
    host: str, port: int, patience_s: float, *, proxy: Proxy | None = None
) -> socket.socket:
    """A TCP connection to host and port, for TLS. `patience_s` for it, and for each read later.

    Raises: OSError: they cannot be reached. TransportError: T15 to T18: what is wrong with the
    proxy, or with its will.
    """
    if proxy is None:
        return socket.create_connection((host, port), patience_s)
    raw = _at_proxy(proxy, min(patience_s, NEAR_S))
    try:
        _tunnel(raw, proxy, join_address(host, port), time.monotonic() + patience_s)
        raw.settimeout(patience_s)
    except BaseException:
        raw.close()
        raise
    return raw


def authorization(proxy: Proxy) -> str:
    """The value of `Proxy-Authorization` (RFC 7617); empty without a user."""
    if not proxy.user:
        return ""
    told = f"{proxy.user}:{proxy.password}".encode()
    return f"Basic {base64.b64encode(told).decode('ascii')}"


def _at_proxy(proxy: Proxy, patience_s: float) -> socket.socket:
    try:
        return socket.create_connection((proxy.host, proxy.port), patience_s)
    except socket.gaierror as error:
        why = f"{proxy.host!r} does not resolve: {error.strerror}"
    except ConnectionRefusedError:
        why = "nothing listens there"
    except OSError as error:
        why = str(error)
    raise TransportError("T15", f"the proxy {proxy} does not answer: {why}")


def _tunnel(raw: socket.socket, proxy: Proxy, target: str, end: float) -> None:
    asked = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if known := authorization(proxy):
        asked.append(f"Proxy-Authorization: {known}")
    try:
        raw.sendall("\r\n".join([*asked, "", ""]).encode("ascii"))
        head = _head(raw, end)
    except TimeoutError:
        raise TimeoutError(f"the proxy {proxy} has not connected to it in time") from None
    except OSError as error:
        raise TransportError("T15", f"the proxy {proxy} does not answer: {error}") from None
    if not head:
        raise TransportError("T15", f"the proxy {proxy} closed the connection without an answer")
    _judge(head, proxy, target)


def _head(raw: socket.socket, end: float) -> bytes:
    """What the proxy answers, up to the empty line: byte by byte, since what follows is TLS."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < _MOST_HEAD:
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError
        raw.settimeout(left)
        if not (byte := raw.recv(1)):
            break
        head += byte
    return head


def _judge(head: bytes, proxy: Proxy, target: str) -> None:
    """Returns where the proxy has connected; else raises what its answer means."""
    found = _STATUS.match(head.decode("latin-1"))
    if not found or not head.endswith(b"\r\n\r\n"):
        message = f"{proxy} is no HTTP proxy: it answered {head[:40]!r}"
        raise TransportError("T18", message, permanent=True)
    status, said = int(found[1]), f"{found[1]} {(found[2] or '')[:80]!r}"
    if 200 <= status < 300:
        return
    if status == 407:
        raise _unknown(head, proxy)
    if status >= 500 and status != _NOT_CONNECT:
        raise ConnectionError(f"the proxy {proxy} cannot reach it ({said})")
    message = f"the proxy {proxy} refuses to connect to {target} ({said})"
    raise TransportError("T16", message, permanent=True)


def _unknown(head: bytes, proxy: Proxy) -> TransportError:
    ways = [way.partition(" ")[0] for way in _headers(head).get_all("Proxy-Authenticate", [])]
    if ways and "basic" not in map(str.lower, ways):
        found = f"knows its users by {', '.join(ways)[:80]!r}; openfed can only do Basic"
    elif proxy.user:
        found = "does not accept the user and the password of site.yaml"
    else:
        found = "wants a user and a password, and site.yaml has none"
    return TransportError("T17", f"the proxy {proxy} {found}", permanent=True)


def _headers(head: bytes) -> Message:
    try:
        return parse_headers(io.BytesIO(head.partition(b"\r\n")[2]))
    except HTTPException:  # more or longer ones than anybody sends
        return Message()
