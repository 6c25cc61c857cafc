"""Fetching images by address. Pure: no torch.

One policy, for a person's command line and for a server that strangers use:

- A name is looked up once, each of its addresses must be one of the open internet, and the
  connection goes to the very address that was checked. The name stays in the certificate check and
  the Host header. No second look-up can lead elsewhere, and proxies are not used.
- https at port 443; http at port 80 where plain text is allowed. No user names.
- Redirects are refused.
- Size is limited, and so is the time from the look-up to the last byte.

A server allows hosts by name besides (`Fetcher.domains`); by default it allows none.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from isthmus.errors import FetchError

TIMEOUT = 10.0
"""Seconds for a name's look-up and all of the image."""
MOST_BYTES = 10_000_000
"""Largest file that is fetched."""

Resolve = Callable[[str, int], Sequence[str]]
"""From a host and a port to its addresses."""
Connect = Callable[[tuple[str, int], float], socket.socket]

_V4_RELAYS = ipaddress.ip_network("192.88.99.0/24")
_V6_UNICAST = ipaddress.ip_network("2000::/3")
_V6_SPECIAL = tuple(
    ipaddress.ip_network(n)
    for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16")
)
_PORTS = {"https": 443, "http": 80}


def is_url(text: str) -> bool:
    """Whether a string is an http or https address and not a path."""
    return text[:8].lower().startswith(("http://", "https://"))


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


class Target(NamedTuple):
    """What an address asks for.

    Attributes:
        host: The host, in lower case.
        port: 443 or 80.
        path: Path and query, quoted.
    """

    host: str
    port: int
    path: str


@dataclass(frozen=True)
class Fetcher:
    """Fetches images by address.

    Attributes:
        domains: The hosts, exactly as addresses must name them; none are fetched from others. None
            allows every host of the open internet.
        timeout: Seconds for all of it, the look-up included.
        max_bytes: Most bytes of an image.
        plain: Whether http is allowed beside https.
        resolve: Looks a host up; asked once for each fetch, in a thread of its own.
        connect: Opens a connection to an address.
        context: Checks certificates.
    """

    domains: tuple[str, ...] | None = ()
    timeout: float = TIMEOUT
    max_bytes: int = MOST_BYTES
    plain: bool = False
    resolve: Resolve = _resolve
    connect: Connect = socket.create_connection
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def check(self, url: str) -> Target:
        """What an address asks for, if it may be fetched. Touches no network.

        Raises:
            FetchError: If addresses are off, or this one is of another scheme, host or port.
        """
        if self.domains == ():
            raise FetchError(
                "images by address are off: send the image itself as a data URI "
                '("data:image/png;base64,..."), or start the server with --allow-media-domain HOST',
                refused=True,
            )
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = (parts.hostname or "").lower().rstrip("."), parts.port
        except ValueError:
            raise FetchError("the image's address is malformed", refused=True) from None
        scheme = parts.scheme.lower()
        schemes = ("https", "http") if self.plain else ("https",)
        if scheme not in schemes or not host or parts.username or parts.password:
            raise FetchError(
                f"the image's address is not one of {' or '.join(schemes)} without a user name: "
                "download the image and pass it itself",
                refused=True,
            )
        if self.domains is not None and host not in {d.lower().rstrip(".") for d in self.domains}:
            raise FetchError(
                f"images may be fetched only from {', '.join(self.domains)}: send the image "
                "as a data URI",
                refused=True,
            )
        if port not in (None, _PORTS[scheme]):
            raise FetchError(
                f"the image's address has port {port}: expected {_PORTS[scheme]}; download the "
                "image and pass it itself",
                refused=True,
            )
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        quoted = urllib.parse.quote(path, safe="/?&=%:@!$'()*+,;~")
        return Target(host, _PORTS[scheme], quoted)

    def addresses(self, target: Target) -> tuple[str, ...]:
        """The addresses of a host, all of which are of the open internet.

        A look-up that takes longer than `timeout` is left to itself: the system's resolver cannot
        be stopped.

        Raises:
            FetchError: If one is not of the open internet, there is none, or it takes too long.
        """
        answer: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                answer.put(list(self.resolve(target.host, target.port)))
            except Exception as error:  # handed on to the thread that waits
                answer.put(error)

        threading.Thread(target=look_up, name="isthmus-resolve", daemon=True).start()
        try:
            found = answer.get(timeout=self.timeout)
        except queue.Empty:
            raise _failed(f"its host was not found after {self.timeout:g} s") from None
        if isinstance(found, (OSError, UnicodeError)):
            raise _failed("its host is not known") from found
        if isinstance(found, Exception):
            raise found
        if not found or not all(is_public(a) for a in found):
            raise FetchError(
                f"the image's host {target.host[:100]} is not on the open internet: download the "
                "image and pass it itself",
                refused=True,
            )
        return tuple(found)

    def fetch(self, url: str) -> bytes:
        """The bytes behind an address.

        Raises:
            FetchError: If it may not be fetched (`refused`), or cannot be.
        """
        target, start = self.check(url), time.monotonic()
        return self.fetch_from(target, self.addresses(target), time.monotonic() - start)

    def fetch_from(self, target: Target, addresses: Sequence[str], spent: float) -> bytes:
        """The bytes of a target at addresses that `addresses` gave.

        Args:
            target: As `check` gives it.
            addresses: Its host's addresses.
            spent: Seconds of the time limit that the look-up took.

        Raises:
            FetchError: If it cannot be fetched.
        """
        left = max(0.001, self.timeout - spent)
        deadline = time.monotonic() + left
        try:
            connection = _Pinned(target, addresses, self, deadline)
            # A socket's own timeout starts anew with every byte that drips in
            watchdog = threading.Timer(left, connection.cut)
            watchdog.daemon = True
            watchdog.start()
            try:
                headers = {"Accept": "image/*", "User-Agent": "isthmus"}
                connection.request("GET", target.path, headers=headers)
                with connection.getresponse() as answer:
                    return self._body(answer, deadline)
            finally:
                watchdog.cancel()
                connection.close()
        except FetchError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise _failed(f"it is not done after {self.timeout:g} s") from None
            raise _failed("it does not answer as an image's address does") from error

    def _body(self, answer: http.client.HTTPResponse, deadline: float) -> bytes:
        if 300 <= answer.status < 400:
            raise _failed("it redirects: send the address of the image itself")
        if answer.status != 200:
            raise _failed(f"it answers {answer.status}")
        pieces, size = [], 0
        while True:
            if time.monotonic() > deadline:
                raise _failed(f"it is not done after {self.timeout:g} s")
            if size + (answer.length or 0) > self.max_bytes:
                raise _failed(f"it has more than {self.max_bytes / 1e6:g} MB")
            if not (piece := answer.read1(1 << 16)):
                break
            pieces.append(piece)
            size += len(piece)
            if size > self.max_bytes:
                raise _failed(f"it has more than {self.max_bytes / 1e6:g} MB")
        if answer.length:
            raise _failed(f"{answer.length} bytes are missing at its end")
        return b"".join(pieces)


def _failed(why: str) -> FetchError:
    return FetchError(f"the image's address cannot be used: {why}", refused=False)


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, under the name that it was found by."""

    def __init__(
        self, target: Target, addresses: Sequence[str], fetcher: Fetcher, deadline: float
    ) -> None:
        super().__init__(target.host, target.port, timeout=fetcher.timeout)
        self.default_port = target.port  # which the Host header then leaves out
        self._addresses, self._fetcher, self._deadline = addresses, fetcher, deadline

    def connect(self) -> None:
        plain = self._first()
        plain.settimeout(max(0.001, self._deadline - time.monotonic()))
        self.sock: Any = plain
        if self.port == _PORTS["https"]:
            self.sock = self._fetcher.context.wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def cut(self) -> None:
        """Ends the connection from another thread."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def _first(self) -> socket.socket:
        """A connection to the first address that takes one."""
        failure: OSError = OSError("no address")
        for address in self._addresses:
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            try:
                return self._fetcher.connect((address, self.port), left)
            except OSError as error:
                failure = error
        raise failure
