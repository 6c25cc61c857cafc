"""Fetching pictures that clients name by address: off unless hosts are allowed by name.

The connection goes to the very address that was checked (no second look-up that could give
another), with the name in the certificate check and the Host header; a redirect is refused; size
and time are limited. Whatever is not the open internet is refused, whichever way it is spelled.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.serving.refusals import Refusal

Resolve = Callable[[str, int], Sequence[str]]
"""From a host and a port to its addresses."""
Connect = Callable[[tuple[str, int], float], socket.socket]

_V4_RELAYS = ipaddress.ip_network("192.88.99.0/24")
_V6_UNICAST = ipaddress.ip_network("2000::/3")
_V6_SPECIAL = tuple(
    ipaddress.ip_network(n)
    for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16")
)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet.

    Of IPv6 only global unicast is let through, so that an IPv4 address behind a translation
    (mapped, NAT64, 6to4, Teredo) is refused with everything else that is special.

    Example:
        >>> [is_public(a) for a in ("93.184.216.34", "100.64.0.1", "::ffff:93.184.216.34")]
        [True, False, False]
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _V6_UNICAST and ip.is_global and not any(ip in n for n in _V6_SPECIAL)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip in _V4_RELAYS)


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True)
class Fetcher:
    """Fetches pictures from allowed hosts.

    Attributes:
        domains: The hosts, exactly as addresses must name them.
        timeout: Seconds for all of it.
        max_bytes: Most bytes of a picture.
        resolve: Looks a host up; asked once for each fetch.
        connect: Opens a connection to an address.
        context: Checks certificates.
    """

    domains: tuple[str, ...] = ()
    timeout: float = 10.0
    max_bytes: int = 10_000_000
    resolve: Resolve = _resolve
    connect: Connect = socket.create_connection
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def check(self, url: str) -> tuple[str, str]:
        """The host and the path of an address, if it may be fetched.

        Raises:
            Refusal: If addresses are off, or this one is of another scheme, host or port.
        """
        if not self.domains:
            raise Refusal(
                400,
                "pictures by address are off: send the picture itself as a data URI "
                '("data:image/png;base64,..."), or start the server with --allow-media-domain HOST',
                "invalid_image_url",
            )
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").lower().rstrip("."), parts.port
        except ValueError:
            raise Refusal(400, "the picture's address is malformed", "invalid_image_url") from None
        if parts.scheme.lower() != "https" or parts.username or parts.password:
            raise Refusal(
                400,
                "expected an https address without a user name, or a data URI",
                "invalid_image_url",
            )
        if host not in {d.lower().rstrip(".") for d in self.domains} or port not in (None, 443):
            raise Refusal(
                400,
                f"pictures may be fetched from {', '.join(self.domains)} at port 443 alone: "
                "send the picture as a data URI",
                "invalid_image_url",
            )
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        return host, urllib.parse.quote(path, safe="/?&=%:@!$'()*+,;~")

    def fetch(self, url: str) -> bytes:
        """The bytes behind an address.

        Raises:
            Refusal: 400 if it may not be fetched, 422 if it cannot be.
        """
        host, path = self.check(url)
        deadline = time.monotonic() + self.timeout
        try:
            connection = _Pinned(host, self, deadline)
            # A socket's own timeout starts anew with every byte that drips in
            watchdog = threading.Timer(self.timeout, connection.cut)
            watchdog.daemon = True
            watchdog.start()
            try:
                headers = {"Accept": "image/*", "User-Agent": "isthmus"}
                connection.request("GET", path, headers=headers)
                with connection.getresponse() as answer:
                    return self._body(answer, deadline)
            finally:
                watchdog.cancel()
                connection.close()
        except Refusal:
            raise
        except (OSError, ValueError, http.client.HTTPException):
            raise _failed("it does not answer as a picture's address does") from None

    def _body(self, answer: http.client.HTTPResponse, deadline: float) -> bytes:
        if 300 <= answer.status < 400:
            raise _failed("it redirects: send the address of the picture itself")
        if answer.status != 200:
            raise _failed(f"it answers {answer.status}")
        pieces, size = [], 0
        while True:
            if time.monotonic() > deadline:
                raise _failed(f"it is not done after {self.timeout:g} s")
            if size + (answer.length or 0) > self.max_bytes:
                raise _failed(f"it has more than {self.max_bytes // 1_000_000} MB")
            if not (piece := answer.read1(1 << 16)):
                break
            pieces.append(piece)
            size += len(piece)
            if size > self.max_bytes:
                raise _failed(f"it has more than {self.max_bytes // 1_000_000} MB")
        if answer.length:
            raise _failed("bytes are missing at its end")
        return b"".join(pieces)


def _failed(why: str) -> Refusal:
    return Refusal(422, f"the picture's address cannot be used: {why}", "invalid_image")


class _Pinned(http.client.HTTPSConnection):
    """A connection to an address that was checked, under the name that it was found by."""

    def __init__(self, host: str, fetcher: Fetcher, deadline: float) -> None:
        super().__init__(host, 443, timeout=fetcher.timeout, context=fetcher.context)
        self._fetcher, self._deadline = fetcher, deadline

    def connect(self) -> None:
        fetcher = self._fetcher
        addresses = list(fetcher.resolve(self.host, 443))
        if not addresses or not all(is_public(a) for a in addresses):
            raise Refusal(
                400, "the picture's host is not on the open internet", "invalid_image_url"
            )
        plain = self._first(addresses)
        plain.settimeout(max(0.001, self._deadline - time.monotonic()))
        self.sock: Any = fetcher.context.wrap_socket(
            plain, server_hostname=self.host, do_handshake_on_connect=False
        )
        self.sock.do_handshake()

    def cut(self) -> None:
        """Ends the connection from another thread."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def _first(self, addresses: Sequence[str]) -> socket.socket:
        """A connection to the first address that takes one."""
        failure: OSError = OSError("no address")
        for address in addresses:
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            try:
                return self._fetcher.connect((address, 443), left)
            except OSError as error:
                failure = error
        raise failure
