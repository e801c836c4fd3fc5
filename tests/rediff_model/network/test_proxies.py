"""Proxies of the environment: for whom, in which forms, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from rediff_model.network import proxies
from rediff_model.network.proxies import ProxyError, proxy_of


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("form", ["http://proxy:3128", "proxy:3128", " http://proxy:3128 \r\n"])
def test_a_proxy_in_every_form(monkeypatch: pytest.MonkeyPatch, name: str, form: str) -> None:
    monkeypatch.setenv(name, form)
    proxy = proxy_of("http://example.org/x")
    assert proxy is not None
    assert (proxy.url, proxy.named_by) == ("http://proxy:3128", name)


@pytest.mark.parametrize(
    "url", ["http://localhost:8000", "http://127.0.0.1", "http://[::1]:8000", "http://0.0.0.0:80"]
)
@pytest.mark.parametrize("value", ["http://proxy:3128", "socks://127.0.0.1:7890"])
def test_this_machine_is_never_asked_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, value: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    monkeypatch.setenv("ALL_PROXY", value)
    assert proxy_of(url) is None


def test_the_scheme_of_the_target_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://a:1")
    assert proxy_of("http://example.org") is None
    monkeypatch.setenv("ALL_PROXY", "http://b:2")
    found = [proxy_of(f"{scheme}://example.org") for scheme in ("http", "https")]
    assert [one and one.url for one in found] == ["http://b:2", "http://a:1"]


@pytest.mark.parametrize(
    "entries",
    [
        "*", "example.org", ".example.org", "*.example.org", "a.example.org", "other, example.org ",
        "EXAMPLE.org", "example.org:443", "https://example.org",
    ],
)  # fmt: skip
def test_named_hosts_are_asked_directly(monkeypatch: pytest.MonkeyPatch, entries: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks://broken")
    monkeypatch.setenv("NO_PROXY", entries)
    assert proxy_of("https://a.example.org") is None


@pytest.mark.parametrize("entries", ["10.1.2.3", "10.0.0.0/8", "10.1.2.3:443", "10.1.2.3/8"])
def test_addresses_and_networks_are_asked_directly(
    monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", f"::2/128,[fd00::1]:443,{entries}")
    assert proxy_of("https://10.1.2.3") is None
    assert proxy_of("https://[fd00::1]") is None
    assert proxy_of("https://[::2]") is None
    assert proxy_of("https://11.1.2.3") is not None


@pytest.mark.parametrize("entries", ["", ",", "example.or", "xample.org", "example.org:80", "org."])
def test_other_hosts_are_not(monkeypatch: pytest.MonkeyPatch, entries: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", entries)
    assert proxy_of("https://example.org") is not None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("socks://127.0.0.1:7890", "the scheme of a proxy must be one of http, https, socks5"),
        ("ftp://proxy:1", "the scheme of a proxy"),
        ("socks5://proxy:1", "pip install socksio"),
        ("http://proxy:99999", "the port must be"),
        ("proxy:port", "the port must be"),
        ("http://", "the host is missing"),
        ("http://pro xy:1", "white space"),
        ("http://me:se/cret@proxy:1", "port"),
    ],
)
def test_a_wrong_proxy_is_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setattr(proxies, "find_spec", lambda name: None)
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ProxyError, match=f"^HTTPS_PROXY=.*{message}") as error:
        proxy_of("https://example.org")
    assert "cret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    proxy = proxy_of("https://example.org")
    assert str(proxy) == "the proxy http://***@proxy:3128 (https_proxy)"
    assert "secret" not in repr(proxy)
