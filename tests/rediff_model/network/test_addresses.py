"""Addresses as they are typed: what works, and what is wrong with the rest."""

from __future__ import annotations

import pytest

from rediff_model.network.addresses import AddressError, is_local, server_url, without_password


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9", "127.1",
        "0.0.0.0", "::1", "[::1]", "::", "::ffff:127.0.0.1", "0x7f.1",
    ],
)  # fmt: skip
def test_hosts_of_this_machine(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host", ["example.org", "localhost.example.org", "128.0.0.1", "10.0.0.1", "fe80::1", "", "bad"]
)
def test_hosts_elsewhere(host: str) -> None:
    assert not is_local(host)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        (" http://127.0.0.1:8000/ \n", "http://127.0.0.1:8000"),
        ("HTTPS://Example.org/captions//", "https://Example.org/captions"),
        ("http://0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("http://[::]:8000/x", "http://[::1]:8000/x"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://u:p@0.0.0.0", "http://u:p@127.0.0.1"),
        ("http://bücher.example:80", "http://bücher.example:80"),
    ],
)
def test_base_urls_that_work(text: str, url: str) -> None:
    assert server_url(text) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the scheme is missing; write http://127.0.0.1:8000"),
        ("localhost:8000", "the scheme is missing; write http://localhost:8000"),
        ("ftp://x", "must be http or https"),
        ("http://", "the host is missing"),
        ("http:///x", "the host is missing"),
        ("http://:8000", "the host is missing"),
        ("http://a b", "white space"),
        ("http://::1:8000", "in brackets"),
        ("http://[::1", "brackets"),
        ("http://[x]", "brackets"),
        ("http://a:70000", "from 1 to 65535"),
        ("http://a:0", "from 1 to 65535"),
        ("http://a:b", "from 1 to 65535"),
        ("http://a:-1", "from 1 to 65535"),
        ("http://a/?x=1", "no query"),
        ("http://a#x", "no query"),
        ("http://a..b", "no host name"),
        (f"http://{'a' * 70}.org", "no host name"),
        ("http://\u200b", "no host name"),
    ],
)
def test_what_is_wrong_with_other_texts(text: str, message: str) -> None:
    with pytest.raises(AddressError, match=message) as error:
        server_url(text)
    assert "\n" not in str(error.value)


def test_passwords_are_not_shown() -> None:
    assert without_password("http://me:p@ss/w@host:1/x") == "http://***@host:1/x"
    assert without_password("http://host:1/x") == "http://host:1/x"
