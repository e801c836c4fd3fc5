"""Settings: where they come from, what they refuse, and that the command line agrees."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_args

import pytest
from fastapi import FastAPI
from pydantic_core import PydanticUndefined

from server.api.process import http_config
from server.commands.serve import serve
from server.engine.config import EngineConfig
from server.settings import EMBEDDED, BadSettings, Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"REDIFF_{name.upper()}", raising=False)


def test_given_goes_before_the_environment_before_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings.read({}).port == 8000
    monkeypatch.setenv("REDIFF_PORT", "9000")
    assert Settings.read({"port": None}).port == 9000
    assert Settings.read({"port": 9001}).port == 9001
    monkeypatch.setenv("REDIFF_PORT", "")
    assert Settings.read({}).port == 8000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": 70000}, r"port: .* 65535, got 70000"),
        ({"port": "x"}, r"port: .* integer.*, got 'x'"),
        ({"device": "gpu"}, r"device: .*, got 'gpu'"),
        ({"dtype": "int8"}, r"dtype: .*, got 'int8'"),
        ({"max_batch": 0}, r"max_batch: .*, got 0"),
        ({"request_timeout": float("nan")}, r"request_timeout: .*"),
        ({"request_timeout": 1000}, r"request_timeout 1000.0 is above max_request_timeout 600.0"),
        ({"max_image_bytes": 2**30}, r"max_image_bytes 1073741824 is above max_body_bytes"),
        ({"max_image_pixels": 10**9}, r"max_image_pixels: .*"),
        (
            {"api_keys": ["good", "b\xe4d-secret"]},
            r"^api_keys: key 2: character 2 .* U\+00E4 ",
        ),
        ({"api_keys": "a" * 513}, r"^api_keys: key 1: .* at most 512 characters, not 513$"),
        ({"api_keys": " , "}, r"^api_keys: nothing but commas and white space$"),
        ({"api_key_file": "/no/such/file"}, r"^api_key_file: cannot read /no/such/file: No such"),
        ({"cors_origins": ["example.org"]}, r"cors_origins: 'example.org' is no origin"),
        ({"cors_origins": ["https://a.b/path"]}, r"cors_origins: 'https://a.b/path' is no origin"),
        ({"image_hosts": ["https://a.b"]}, r"image_hosts: 'https://a.b' is no host name"),
        ({"image_hosts": ["*"]}, r"image_hosts: '\*' is no host name"),
        ({"image_fetch_timeout": 0}, r"image_fetch_timeout: .*, got 0"),
        ({"log_format": "xml"}, r"log_format: .*, got 'xml'"),
        ({"otlp_endpoint": "collector:4318"}, r"otlp_endpoint: .*"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettings, match=message) as caught:
        Settings.read(given)
    assert "\n" not in str(caught.value)


def test_several_values_come_from_options_or_from_one_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings.read({"api_keys": []}).api_keys == ()
    assert Settings.read({"api_keys": ["a", "b,c"]}).api_keys == ("a", "b", "c")
    monkeypatch.setenv("REDIFF_API_KEYS", "a, b\nc")
    monkeypatch.setenv("REDIFF_IMAGE_HOSTS", "A.example *.b.example")
    settings = Settings.read({"api_keys": []})
    assert settings.api_keys == ("a", "b", "c")
    assert settings.image_hosts == ("a.example", "*.b.example")
    assert Settings.read({"api_keys": ["d"]}).api_keys == ("d",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# only this\n\n", r"^api_key_file: .* holds no key$"),
        (b"good\r\n\r\ntwo words-secret\r\n", r"^api_key_file: .* line 3: character 4 .* U\+0020"),
        (b"good\na,secret", r"^api_key_file: .* line 2: a key holds no comma"),
        (b"\xff\xfe", r"^api_key_file: cannot read .*: not UTF-8 text$"),
    ],
)
def test_a_bad_file_of_keys_stops_the_start(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(BadSettings, match=message) as caught:
        Settings.read({"api_key_file": str(file)})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " \t\r\n\r\n \r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_keys_of_a_file_written_anywhere(tmp_path: Path, mark: bytes, end: str) -> None:
    file = tmp_path / "keys"
    lines = ("# ours", "  first", " # theirs", "second#2")
    file.write_bytes(mark + end.join(lines).encode() + end.encode())
    assert Settings.read({"api_key_file": str(file)}).file_keys() == ("first", "second#2")


@pytest.mark.parametrize("text", ["a\r\n", "\ufeffa", " a, \r\n,", "\r\n\r\na"])
def test_line_ends_and_marks_around_keys_are_dropped(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    assert Settings.read({"api_keys": [text]}).api_keys == ("a",)
    monkeypatch.setenv("REDIFF_API_KEYS", text)
    assert Settings.read({}).api_keys == ("a",)


def test_a_prompt_may_never_be_computed_again() -> None:
    assert Settings.read({"prefix_refresh_interval": "never"}).prefix_refresh_interval is None
    assert Settings.read({"prefix_refresh_interval": "4"}).prefix_refresh_interval == 4
    with pytest.raises(BadSettings, match=r"prefix_refresh_interval: .*, got '0'"):
        Settings.read({"prefix_refresh_interval": "0"})


def test_keys_are_not_shown() -> None:
    assert "abc-secret" not in repr(Settings.read({"api_keys": ["abc-secret"]}))


def test_the_engine_gets_its_part() -> None:
    config = Settings.read({"model": "m", "max_batch": 3, "threads": 2}).engine()
    assert config == EngineConfig("m", max_batch=3, threads=2)


def test_defaults_of_settings_and_engine_agree() -> None:
    settings = Settings.read({}).engine()
    assert settings == EngineConfig(str(EMBEDDED))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "embedded"),
        ({"model": "owner/model"}, "model"),
        ({"model": "/a/b/"}, "b"),
        ({"model": "/a/b", "served_model_name": "x"}, "x"),
    ],
)
def test_the_served_name(given: dict[str, Any], name: str) -> None:
    assert Settings.read(given).name == name


def test_serve_has_an_option_with_the_true_default_for_every_setting() -> None:
    parameters = inspect.signature(serve).parameters
    assert set(parameters) == set(Settings.model_fields)
    words = {"model": "the embedded checkpoint", "revision": "newest", "threads": "torch's own"}
    words |= {"served_model_name": "from --model", "max_rows": "what fits"}
    words |= dict.fromkeys(
        ("api_keys", "api_key_file", "cors_origins", "image_hosts", "otlp_endpoint"), "none"
    )
    for name, parameter in parameters.items():
        option = next(m for m in get_args(parameter.annotation) if hasattr(m, "envvar"))
        assert option.envvar == f"REDIFF_{name.upper()}"
        default = Settings.model_fields[name].default
        assert default is not PydanticUndefined
        assert option.show_default == words.get(name, str(default))
        assert option.help


@pytest.mark.parametrize(("given", "seconds"), [({}, 75), ({"keep_alive_timeout": "6"}, 6)])
def test_idle_connections_outlast_those_of_proxies(given: dict[str, str], seconds: int) -> None:
    assert http_config(FastAPI(), Settings.read(given)).timeout_keep_alive == seconds
