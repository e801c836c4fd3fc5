"""Remote pictures: which URLs are fetched, from which addresses, and with which limits."""

from __future__ import annotations

import base64
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from server_fakes import png, running

from server.api import app as app_module
from server.errors import BadBody
from server.images.fetch import RemotePictures, is_public, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PUBLIC = "93.184.215.14"
PICTURE = png()
HOSTS = ("pictures.example", "*.cdn.example")


def answer(
    content: bytes = PICTURE, status: str = "200 OK", headers: str | None = None
) -> tuple[bytes, ...]:
    if headers is None:
        headers = f"Content-Length: {len(content)}\r\n"
    return (f"HTTP/1.1 {status}\r\n{headers}\r\n".encode(), content)


@dataclass
class Stub:
    """The other end: sends fixed chunks to whoever connects, and notes what it was asked."""

    chunks: tuple[bytes, ...] = field(default_factory=answer)
    pause: float = 0.0
    addresses: Sequence[str] = (PUBLIC,)
    dead: frozenset[str] = frozenset()
    resolved: list[str] = field(default_factory=list)
    connected: list[tuple[str, str]] = field(default_factory=list)
    asked: list[bytes] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def resolve(self, host: str) -> Sequence[str]:
        self.resolved.append(host)
        return self.addresses

    def connect(self, address: str, host: str, timeout: float) -> socket.socket:
        assert timeout > 0
        self.connected.append((address, host))
        if address in self.dead:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(theirs,))
        self.threads.append(thread)
        thread.start()
        return ours

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            self.asked.append(connection.recv(10_000))
            try:
                for chunk in self.chunks:
                    connection.sendall(chunk)
                    time.sleep(self.pause)
            except OSError:
                return

    def pictures(self, max_bytes: int = 100_000, timeout: float = 5.0) -> RemotePictures:
        return RemotePictures(HOSTS, max_bytes, timeout, self.resolve, self.connect)

    def refusal(self, url: str = "https://pictures.example/a.png", **options: float) -> BadBody:
        with pytest.raises(BadBody) as caught:
            self.pictures(**options)(url, "image.url")  # type: ignore[arg-type]
        assert caught.value.param == "image.url"
        assert "pictures.example" not in caught.value.message
        return caught.value


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    for thread in stub.threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://pictures.example/a.png", "pictures.example", "/a.png"),
        ("https://PICTURES.example:443/a?b=c&d#e", "pictures.example", "/a?b=c&d"),
        ("https://pictures.example", "pictures.example", "/"),
        ("HTTPS://a.b.cdn.example/x", "a.b.cdn.example", "/x"),
    ],
)
def test_an_allowed_picture_is_fetched(stub: Stub, url: str, host: str, target: str) -> None:
    assert stub.pictures()(url, "image.url") == PICTURE
    assert stub.resolved == [host]
    assert stub.connected == [(PUBLIC, host)]
    lines = stub.asked[0].decode().split("\r\n")
    assert lines[0] == f"GET {target} HTTP/1.1"
    assert f"Host: {host}" in lines
    assert not any(line.lower().startswith(("cookie", "authorization")) for line in lines)


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/a.png",
        "file:///etc/passwd",
        "file://pictures.example/etc/passwd",
        "ftp://pictures.example/a",
        "gopher://pictures.example/a",
        "//pictures.example/a",
        "pictures.example/a",
        "",
        "https://",
        "https:///a.png",
        "https://other.example/a.png",
        "https://cdn.example/a.png",
        "https://evilcdn.example/a.png",
        "https://pictures.example.evil.org/a.png",
        "https://pictures.example./a.png",
        "https://pictures.example:8443/a.png",
        "https://pictures.example:/a.png",
        "https://pictures.example:443443/a.png",
        "https://user@pictures.example/a.png",
        "https://user:pw@pictures.example/a.png",
        "https://pictures.example@127.0.0.1/a.png",
        "https://127.0.0.1#@pictures.example/",
        "https://127.0.0.1\\@pictures.example/",
        "https://pictures.example\\@127.0.0.1/",
        "https://pictures.example\t/a",
        "https://pictures.example/a b",
        "https://pictures.example/\r\nHost: x",
        "https://pictures.example/\u00e9",
        "https://p\u0131ctures.example/",
        "https://%70ictures.example/",
        "https://..cdn.example/",
        "https://[::1].cdn.example/",
        "https://[pictures.example]/",
        "https://[::ffff:127.0.0.1]/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://pictures.example/" + "a" * 3000,
    ],
)
def test_any_other_url_is_refused_before_a_name_is_looked_up(stub: Stub, url: str) -> None:
    # CVE-2026-24779: the checker and the client of another server read a backslash differently.
    refused = stub.refusal(url)
    assert (refused.status, refused.code) == (400, "url_not_allowed")
    assert stub.resolved == []
    assert stub.connected == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2001::1",
        "2002:7f00:1::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "nonsense",
        "",
    ],
)
def test_addresses_that_are_not_public_are_refused(stub: Stub, address: str) -> None:
    assert not is_public(address)
    # One such address among public ones is enough: which one is used may be chosen by others.
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        stub.addresses = addresses
        assert stub.refusal().code == "url_not_allowed"
    assert stub.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "2a00:1450:4001::200e"])
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


def test_a_name_without_an_address_is_refused(stub: Stub) -> None:
    stub.addresses = ()
    assert stub.refusal().code == "url_not_allowed"


@pytest.mark.parametrize("error", [socket.gaierror("no"), UnicodeError("label"), TimeoutError()])
def test_a_name_that_cannot_be_looked_up_is_400(stub: Stub, error: Exception) -> None:
    def fail(host: str) -> list[str]:
        raise error

    pictures = RemotePictures(HOSTS, 1000, 5.0, fail, stub.connect)
    with pytest.raises(BadBody) as caught:
        pictures("https://pictures.example/", "image.url")
    assert caught.value.code == "image_unreachable"


def test_the_name_is_looked_up_once_and_the_checked_address_used(stub: Stub) -> None:
    # A name that changes its address between the check and the connection gains nothing.
    answers = [[PUBLIC], ["127.0.0.1"]]

    def rebinding(host: str) -> list[str]:
        return answers.pop(0)

    RemotePictures(HOSTS, 100_000, 5.0, rebinding, stub.connect)("https://pictures.example/", "")
    assert stub.connected == [(PUBLIC, "pictures.example")]
    assert answers == [["127.0.0.1"]]


def test_the_next_address_is_tried(stub: Stub) -> None:
    stub.addresses, stub.dead = ("2606:4700::1111", PUBLIC), frozenset({"2606:4700::1111"})
    assert stub.pictures()("https://pictures.example/", "image.url") == PICTURE
    stub.dead = frozenset(stub.addresses)
    assert stub.refusal().code == "image_unreachable"


@pytest.mark.parametrize(
    "status",
    [
        "301 Moved",
        "302 Found",
        "303 See Other",
        "307 Temporary",
        "308 Permanent",
        "404 No",
        "500 X",
    ],
)
def test_redirects_and_errors_are_not_followed(stub: Stub, status: str) -> None:
    # CVE-2026-63764: another server checked the first URL only.
    for place in ("https://127.0.0.1/", "https://pictures.example/b", "/b"):
        stub.chunks = answer(status=status, headers=f"Location: {place}\r\nContent-Length: 0\r\n")
        assert stub.refusal().code == "image_unreachable"
    assert len(stub.connected) == 3
    assert {host for _, host in stub.connected} == {"pictures.example"}


@pytest.mark.parametrize("headers", [None, "", "Transfer-Encoding: chunked\r\n"])
def test_a_picture_above_the_limit_is_413_and_not_read_to_its_end(
    stub: Stub, headers: str | None
) -> None:
    # CVE-2026-0599: another server read bodies of any size.
    piece = b"x" * 10_000
    if headers and "chunked" in headers:
        piece = b"2710\r\n" + piece + b"\r\n"
    announced = "Content-Length: 1000000000\r\n" if headers is None else headers
    head = answer(headers=announced)[0]
    stub.chunks = (head, *[piece] * 1000)
    refused = stub.refusal(max_bytes=50_000)
    assert (refused.status, refused.code) == (413, "image_too_large")


@pytest.mark.parametrize("where", ["headers", "body"])
def test_bytes_that_drip_end_in_time(stub: Stub, where: str) -> None:
    if where == "headers":
        stub.chunks = (b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 40)
    else:
        stub.chunks = (answer()[0], *[b"x"] * 40)
    stub.pause = 0.02
    # Each byte comes in time, all of them together do not.
    assert stub.refusal(timeout=0.1).code == "image_unreachable"


@pytest.mark.parametrize(
    "chunks",
    [
        (),
        (b"",),
        (b"nonsense\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500,),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
        (b"HTTP/1.1 abc OK\r\n\r\n",),
    ],
)
def test_an_answer_that_is_no_proper_http_is_400(stub: Stub, chunks: tuple[bytes, ...]) -> None:
    stub.chunks = chunks
    assert stub.refusal().code == "image_unreachable"


def test_without_an_allowlist_nothing_is_fetched() -> None:
    with pytest.raises(BadBody, match="remote pictures are off") as caught:
        refuse("https://pictures.example/a.png", "image.url")
    assert caught.value.code == "url_not_allowed"


@pytest.mark.anyio
async def test_the_routes_fetch_what_is_allowed(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_stub(hosts: Sequence[str], max_bytes: int, timeout: float) -> RemotePictures:
        return RemotePictures(hosts, max_bytes, timeout, stub.resolve, stub.connect)

    monkeypatch.setattr(app_module, "RemotePictures", with_stub)
    url = "https://pictures.example/a.png"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    chat = {"messages": [{"role": "user", "content": content}]}
    async with running(image_hosts=["Pictures.example"], image_fetch_timeout=2) as server:
        good = await server.client.post("/caption", json={"image": {"url": url}})
        assert good.status_code == 200
        assert server.runner.pictures[0].size == (6, 4)
        assert (await server.client.post("/v1/chat/completions", json=chat)).status_code == 200
        bad = await server.client.post("/caption", json={"image": {"url": "https://x.example/"}})
        assert bad.status_code == 400
        assert bad.json()["error"]["param"] == "image.url"
        stub.chunks = answer(b"<html>")
        bad = await server.client.post("/caption", json={"image": {"url": url}})
        assert bad.status_code == 415
        data = base64.b64encode(PICTURE).decode()
        stub.connected.clear()
        good = await server.client.post(
            "/caption", json={"image": {"url": f"data:image/png;base64,{data}"}}
        )
        assert good.status_code == 200
        assert stub.connected == []
        assert server.service.active == 0
