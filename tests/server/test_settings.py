"""Settings: where they come from, what they refuse, and that the command line agrees."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import pytest
from pydantic_core import PydanticUndefined

from server import cli
from server.engine.config import EngineConfig
from server.settings import EMBEDDED, BadSettings, Settings


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
    ],
)
def test_a_bad_value_is_one_line_that_names_it(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettings, match=message) as caught:
        Settings.read(given)
    assert "\n" not in str(caught.value)


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
    parameters = inspect.signature(cli.serve).parameters
    assert set(parameters) == set(Settings.model_fields)
    words = {"model": "the embedded checkpoint", "revision": "newest", "threads": "torch's own"}
    words["served_model_name"] = "from --model"
    for name, parameter in parameters.items():
        option = next(m for m in get_args(parameter.annotation) if hasattr(m, "envvar"))
        assert option.envvar == f"REDIFF_{name.upper()}"
        default = Settings.model_fields[name].default
        assert default is not PydanticUndefined
        assert option.show_default == words.get(name, str(default))
        assert option.help
