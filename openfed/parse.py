"""Strict readings of what others wrote: JSON, digests, names, hosts. All raise `ValueError`."""

import ipaddress
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

DIGEST = re.compile(r"[0-9a-f]{64}")
"""A SHA-256 or a BLAKE3 in lower-case hexadecimal digits."""

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
"""Of a node or a federation: also a safe file name, and a part of a URI."""

AGGREGATE = "aggregate"
"""Stands where a collaborator's name would, in a metric over all of them. No node is named so."""

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")


def strict_json(text: str | bytes) -> Any:
    """As `json.loads`, without its leniency: each key once, finite numbers, sane depth."""
    try:
        return json.loads(
            text, object_pairs_hook=_each_once, parse_constant=finite, parse_float=finite
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def finite(text: str) -> float:
    """A number of JSON; raises ValueError for what no finite float is."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def host(text: str) -> str:
    """A DNS name, or an IP address (IPv6 bare or in brackets) bare and in its shortest form."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare or bare != text or bare.replace(".", "").isdigit():
        return str(ipaddress.ip_address(bare))
    bare = bare.removesuffix(".")
    if len(bare) > 253 or not all(_LABEL.fullmatch(label) for label in bare.split(".")):
        raise ValueError(f"{text[:60]!r} is neither a DNS name nor an IP address")
    return bare


def split_address(text: str) -> tuple[str, int]:
    """`host:port` or `[IPv6]:port`: the host as `host` gives it, and a port of 0 to 65535."""
    name, _, port = text.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > 65535 or (":" in name) != name.startswith("["):
        raise ValueError(f"{text[:60]!r}: expected host:port, with a port of 0 to 65535")
    return host(name), int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that is asked to CONNECT. Its `str` and `repr` hold no password."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"http://{join_address(self.host, self.port)}"


def parse_proxy(text: str) -> Proxy:
    """`http://host:port` or `http://user:password@host:port`, with what has a meaning in a URL
    as %XX. The error does not quote what was given: that may hold a password."""
    scheme, _, rest = text.partition("://")
    told, known, address = rest.rpartition("@")
    try:
        name, port = split_address(address.removesuffix("/"))
        user, _, password = (unquote(part, errors="strict") for part in told.partition(":"))
    except ValueError:
        scheme = ""
    if scheme != "http" or not port or (is_ip(name) and ipaddress.ip_address(name).is_unspecified):
        raise ValueError("expected http://host:port, or http://user:password@host:port")
    if (known and not user) or ":" in user or not (user + password).isprintable():
        raise ValueError("expected a user (no colon in it) and a password, of printable characters")
    return Proxy(name, port, user, password)
