"""Images by address: allowed hosts alone, the address that was checked, nothing but an image."""

from __future__ import annotations

import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from isthmus.errors import FetchError, ImageError
from isthmus.media.fetch import Fetcher, is_public, is_url

PUBLIC = "93.184.216.34"
DRIPS = 200
"""Four seconds of them; half a second is allowed."""


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:93.184.216.34",
        "64:ff9b::7f00:1",
        "64:ff9b::5db8:d822",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:5db8:d822::",
        "3fff::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "no address",
        "",
    ],
)
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111"])
def test_the_open_internet_is(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://images.test/cat.png",
        "https://other.test/cat.png",
        "https://images.test:8443/cat.png",
        "https://images.test@other.test/cat.png",
        "https://user:secret@images.test/cat.png",
        "https://images.test.other.test/cat.png",
        "https://ximages.test/cat.png",
        "https://127.0.0.1/cat.png",
        "https://[::1]/cat.png",
        "https://0x7f000001/cat.png",
        "https:///cat.png",
        "https://images.test\\@other.test/",
        "https://[bad/",
        "https://images.test:99999/",
    ],
)
def test_only_allowed_hosts_by_https(url: str) -> None:
    asked: list[str] = []
    fetcher = Fetcher(("images.test",), resolve=lambda host, port: asked.append(host) or [])
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(url)
    assert caught.value.refused
    assert asked == []


def test_it_is_off_by_default() -> None:
    with pytest.raises(FetchError, match="--allow-media-domain"):
        Fetcher().fetch("https://images.test/cat.png")


@pytest.mark.parametrize("private", ["127.0.0.1", "10.0.0.1", "::1", "169.254.169.254"])
@pytest.mark.parametrize("first", [True, False])
def test_a_host_with_any_private_address_is_refused(private: str, first: bool) -> None:
    found = [private, PUBLIC] if first else [PUBLIC, private]
    connected: list[Any] = []
    fetcher = Fetcher(
        ("images.test",),
        resolve=lambda host, port: found,
        connect=lambda address, left: connected.append(address) or socket.socket(),
    )
    with pytest.raises(FetchError, match="open internet"):
        fetcher.fetch("https://images.test/cat.png")
    assert connected == []


# --- A host that we run, behind a public address ---------------------------------------------


@dataclass
class Host:
    """A host "images.test" and everything that was asked of it."""

    fetcher: Fetcher
    resolved: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    dripped: int = 0
    dry: threading.Event = field(default_factory=threading.Event)


class _Answers(http.server.BaseHTTPRequestHandler):
    host: ClassVar[Host]

    def do_GET(self) -> None:
        self.host.asked.append((self.path, self.headers["Host"]))
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", "https://127.0.0.1/secret")
            self.end_headers()
            return
        if self.path == "/drip-head":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self._drip(b"x")  # a header that never ends
            return
        body = b"x" * 50_000 if self.path == "/large" else b"image"
        body = b"x" * 1000 if self.path == "/drip" else body
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path != "/no-length":
            self.send_header("Content-Length", str(len(body) + (self.path == "/short")))
        self.end_headers()
        if self.path == "/drip":
            self._drip(b"x")
            return
        self.wfile.write(body * (10_000 if self.path == "/no-length" else 1))

    def _drip(self, piece: bytes) -> None:
        try:
            for _ in range(DRIPS):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.02)
                self.host.dripped += 1
        except OSError:
            pass
        self.host.dry.set()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
    command += ["-subj", "/CN=images.test", "-addext", "subjectAltName=DNS:images.test"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not installed")
    return key, cert


@pytest.fixture
def host(certificate: tuple[Path, Path]) -> Iterator[Host]:
    key, cert = certificate
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    answers = ["127.0.0.1", "10.0.0.1"]  # what a second look-up would give

    def resolve(name: str, port: int) -> list[str]:
        made.resolved.append(name)
        return [PUBLIC] if len(made.resolved) == 1 else answers

    def connect(address: tuple[str, int], left: float) -> socket.socket:
        made.connected.append(address[0])
        return socket.create_connection(server.server_address[:2], left)

    trusting = ssl.create_default_context(cafile=str(cert))
    made = Host(
        Fetcher(
            ("images.test",),
            timeout=0.5,
            max_bytes=40_000,
            resolve=resolve,
            connect=connect,
            context=trusting,
        )
    )
    _Answers.host = made
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_connection_is_to_what_was_checked(host: Host) -> None:
    """Rebinding: a name that is looked up twice leads elsewhere the second time."""
    assert host.fetcher.fetch("https://images.test/cat.png?a=b c") == b"image"
    assert host.resolved == ["images.test"]
    assert host.connected == [PUBLIC]
    assert host.asked == [("/cat.png?a=b%20c", "images.test")]


def test_redirects_are_not_followed(host: Host) -> None:
    with pytest.raises(FetchError, match="redirects") as caught:
        host.fetcher.fetch("https://images.test/redirect")
    assert not caught.value.refused
    assert len(host.asked) == len(host.connected) == 1


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("large", "more than"),
        ("no-length", "more than"),
        ("missing", "404"),
        ("short", "missing|does not answer"),
        ("drip", "not done|missing|does not answer"),
        ("drip-head", "not done|does not answer"),
    ],
)
def test_size_and_time_are_limited(host: Host, path: str, why: str) -> None:
    with pytest.raises(FetchError, match=why) as caught:
        host.fetcher.fetch(f"https://images.test/{path}")
    assert not caught.value.refused
    if path.startswith("drip"):
        assert host.dry.wait(10)
        assert host.dripped < DRIPS


def test_a_certificate_of_another_name_is_refused(host: Host) -> None:
    from dataclasses import replace

    fetcher = replace(host.fetcher, domains=("other.test",))
    with pytest.raises(FetchError) as caught:
        fetcher.fetch("https://other.test/cat.png")
    assert not caught.value.refused
    assert host.asked == []


# --- The look-up ---------------------------------------------------------------------------------


def test_the_time_limit_covers_the_look_up() -> None:
    """A resolver that does not answer; what it would do at last is of no interest any more."""
    answered = threading.Event()

    def resolve(name: str, port: int) -> list[str]:
        answered.wait(60)
        return [PUBLIC]

    fetcher = Fetcher(("images.test",), timeout=0.3, resolve=resolve)
    with pytest.raises(FetchError, match=r"not found after 0\.3 s") as caught:
        fetcher.fetch("https://images.test/cat.png")
    assert not answered.is_set()
    assert not caught.value.refused
    answered.set()


def test_a_name_that_nobody_knows_is_an_error_of_ours() -> None:
    def resolve(name: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(FetchError, match="host is not known"):
        Fetcher(("images.test",), resolve=resolve).fetch("https://images.test/cat.png")


# --- A person's own command line: any host of the open internet, and http ------------------------


def test_what_an_address_is() -> None:
    assert is_url("https://example.com/cat.jpg")
    assert is_url("HTTP://example.com")
    assert not is_url("http.png")
    assert not is_url("file:///etc/passwd")
    assert not is_url("ftp://example.com/cat.jpg")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "[::1]", "[fe80::1]", "[fc00::1]"),
        *("[::ffff:127.0.0.1]", "[2002:7f00:1::]", "[64:ff9b::a00:1]", "[ff02::1]", "[::]"),
        *("2130706433", "0x7f.1", "localhost"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_whatever_is_not_public_is_refused_for_everybody(scheme: str, host: str) -> None:
    with pytest.raises(ImageError, match=r"^[^\n]*not on the open internet"):
        Fetcher(None, plain=True).fetch(f"{scheme}://{host}/cat.png")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://",
        "http://[",
        "http://a:b/",
        "http://images.test:8080/cat.png",
        "https://images.test:80/cat.png",
        "https://user@images.test/cat.png",
    ],
)
def test_addresses_that_are_no_image_s(url: str) -> None:
    fetcher = Fetcher(None, plain=True, resolve=lambda host, port: pytest.fail("looked up"))
    with pytest.raises(FetchError, match=r"^[^\n]*$") as caught:
        fetcher.fetch(url)
    assert caught.value.refused


def test_http_where_it_is_allowed() -> None:
    asked: list[tuple[str, str]] = []

    class Plain(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Host"]))
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"image")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        fetcher = Fetcher(
            None,
            plain=True,
            resolve=lambda host, port: [PUBLIC],
            connect=lambda address, left: socket.create_connection(server.server_address[:2]),
        )
        data = fetcher.fetch("http://images.test/a%20b/점.png?size=2&x=y#part")
        server.shutdown()
    assert data == b"image"
    assert asked == [("/a%20b/%EC%A0%90.png?size=2&x=y", "images.test")]
