"""Requests that the app makes to addresses which its owners typed: never to this machine or its network by surprise.

A name is looked up once, every address it has is checked, and the connection goes to a checked address: a name that is
another one a moment later (DNS rebinding) changes nothing. Redirects are not followed, proxies are not asked.
"""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from harken.errors import UsageError

TIMEOUT_S = 10.0
MAX_URL = 2000
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Refused(UsageError):
    """An address that the app does not send to."""


@dataclass(frozen=True)
class Target:
    """An address that was checked."""

    parts: SplitResult
    host: str
    port: int
    addresses: tuple[str, ...]
    """IP addresses, each of them allowed."""


def check_target(url: str, allowed_hosts: Collection[str] = ()) -> Target:
    """Look up where a URL leads, and refuse what is not out on the internet.

    Args:
        url: https; http only for an allowed host.
        allowed_hosts: names or IP addresses that are taken whatever they lead to.

    Raises:
        Refused: no URL of this kind, a host that is not found, or one of whose addresses is private, of this machine,
            link-local (cloud metadata), multicast or reserved.
    """
    parts, host, port = _parse(url)
    is_allowed = host in {name.casefold() for name in allowed_hosts}
    if parts.scheme == "http" and not is_allowed:
        raise Refused(f"{_shown(url)}: expected https; start the app with --allow-host {host} to allow http there")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Refused(f"{_shown(url)}: the host {host!r} was not found; check the name") from error
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not is_allowed and not all(is_public(address) for address in addresses):
        raise Refused(
            f"{_shown(url)}: {host} is in a private network or this machine itself; start the app with "
            f"--allow-host {host} if that is meant"
        )
    return Target(parts, host, port, addresses)


def _parse(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").casefold(), parts.port
    except ValueError:
        raise Refused(f"{_shown(url)}: not a URL; expected something like https://example.org/hook") from None
    is_text = len(url) <= MAX_URL and url.isascii() and url.isprintable() and " " not in url
    if not is_text or parts.scheme not in ("http", "https") or not host:
        raise Refused(f"{_shown(url)}: not a URL; expected something like https://example.org/hook")
    if parts.username is not None or parts.password is not None:
        raise Refused("a URL with a name or password in it would show them to everybody who sees it; leave them out")
    return parts, host, port or (443 if parts.scheme == "https" else 80)


def is_public(address: str) -> bool:
    """Tell whether an IP address is out on the internet, whatever form it hides in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv4 inside of IPv6, by any of the standard ways.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def send(url: str, body: bytes, headers: Mapping[str, str], *, allowed_hosts: Collection[str] = ()) -> int:
    """Send a POST request and return the status of the answer, whose text is not read.

    Raises:
        Refused: as `check_target`; it is asked each time, as names change.
        OSError: no connection, or it broke or took longer than `TIMEOUT_S`.
        http.client.HTTPException: what came back is no answer.
    """
    target = check_target(url, allowed_hosts)
    connection = _Pinned(target)
    path = target.parts.path or "/"
    try:
        connection.request("POST", f"{path}?{target.parts.query}" if target.parts.query else path, body, dict(headers))
        return connection.getresponse().status
    finally:
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, which names the host as the URL does."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.host, target.port, timeout=TIMEOUT_S)
        self._target = target
        self.default_port = 443 if target.parts.scheme == "https" else 80

    def connect(self) -> None:
        plain = socket.create_connection((self._target.addresses[0], self._target.port), TIMEOUT_S)
        self.sock = plain
        if self._target.parts.scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self._target.host)


def _shown(url: str) -> str:
    return repr(url[:100])
