"""The server's settings: from the command line, else from `REDIFF_…`, else the defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rediff_model.network.addresses import listen_host
from rediff_model.network.keys import BYTE_ORDER_MARK, KeyTextError, clean_key
from server.engine.config import EngineConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

EMBEDDED: Final = Path(__file__).parent.parent / "rediff_model" / "checkpoints" / "embedded"
"""The checkpoint that ships with the package."""

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1024, le=2**34)]
Texts = Annotated[tuple[str, ...], NoDecode]
"""Several values: in the environment with commas or white space between them."""

_LONGEST_KEY: Final = 512
_BETWEEN: Final = re.compile(rf"[,\s{BYTE_ORDER_MARK}]+")
"""What stands between several values of a variable."""
_ORIGIN: Final = re.compile(r"\*|https?://[A-Za-z0-9.\-]+(:\d{1,5})?")
_HOST: Final = re.compile(
    r"(\*\.)?[a-z0-9]([a-z0-9\-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9\-]*[a-z0-9])?)+"
)


class BadSettings(ValueError):
    """Settings that cannot be used; the message is one line and names the setting."""


class Settings(BaseSettings):
    """What `rediff serve` can be told."""

    model_config = SettingsConfigDict(env_prefix="REDIFF_", env_ignore_empty=True, frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    model: str = Field(str(EMBEDDED), min_length=1)
    revision: str | None = None
    served_model_name: str | None = Field(None, min_length=1, max_length=200)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    max_batch: int = Field(16, ge=1, le=4096)
    max_rows: int | None = Field(None, ge=1, le=2**31)
    max_prefill_rows: int = Field(1024, ge=1, le=2**31)
    prefix_refresh_interval: int | None = Field(1, ge=1, le=65_536)
    cuda_graphs: bool = False
    compile: bool = False
    vision_cache_bytes: int = Field(256 * 2**20, ge=0, le=2**40)
    max_queue: int = Field(256, ge=0, le=1_000_000)
    max_canvas: int = Field(1024, ge=1, le=65_536)
    max_prompt_tokens: int = Field(1024, ge=1, le=1_000_000)
    prepare_threads: int = Field(2, ge=1, le=64)
    max_image_bytes: Bytes = 20 * 2**20
    max_image_pixels: int = Field(50_000_000, ge=1, le=178_956_970)
    max_image_side: int = Field(30_000, ge=1, le=1_000_000)
    max_body_bytes: Bytes = 32 * 2**20
    max_buffered_bytes: Bytes = 512 * 2**20
    max_prompt_characters: int = Field(4000, ge=1, le=1_000_000)
    request_timeout: Seconds = 60.0
    max_request_timeout: Seconds = 600.0
    body_timeout: Seconds = 30.0
    drain_timeout: Seconds = 30.0
    keep_alive_timeout: int = Field(75, ge=1, le=86_400)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    api_keys: Texts = Field((), repr=False)
    api_key_file: str | None = Field(None, min_length=1)
    metrics_public: bool = False
    cors_origins: Texts = ()
    image_hosts: Texts = ()
    image_fetch_timeout: Seconds = 5.0
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://")

    @field_validator("api_keys", "cors_origins", "image_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            return value
        parts = tuple(part for text in texts for part in re.split(_BETWEEN, text) if part)
        if texts and not parts:
            raise ValueError("nothing but commas and white space")
        return parts

    @field_validator("host")
    @classmethod
    def _is_host(cls, host: str) -> str:
        return listen_host(host)

    @field_validator("prefix_refresh_interval", mode="before")
    @classmethod
    def _never(cls, value: object) -> object:
        return None if value == "never" else value

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_key(key, f"key {number}") for number, key in enumerate(keys, 1))

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin such as https://example.org, or *")
        return origins

    @field_validator("image_hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.lower() for host in hosts)
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no host name such as example.org or *.example.org")
        return hosts

    @model_validator(mode="after")
    def _keys_in_file(self) -> Self:
        if self.api_key_file is not None and not self.file_keys():
            raise ValueError(f"api_key_file: {self.api_key_file} holds no key")
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for small, large in (
            ("max_image_bytes", "max_body_bytes"),
            ("max_body_bytes", "max_buffered_bytes"),
            ("request_timeout", "max_request_timeout"),
        ):
            if getattr(self, small) > getattr(self, large):
                raise ValueError(
                    f"{small} {getattr(self, small)} is above {large} {getattr(self, large)}"
                )
        return self

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """The settings, `given` first (None: not given), then the environment.

        Raises:
            BadSettings: a value of the wrong type or out of range.
        """
        try:
            # An option that may be repeated and was not given comes as an empty list.
            return cls(**{name: v for name, v in given.items() if v is not None and v != []})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            # What was given may be a key, which belongs in no log.
            if not name or name == "api_keys":
                raise BadSettings(f"{name}: {message}" if name else message) from None
            raise BadSettings(f"{name}: {message}, got {first['input']!r}") from None

    @property
    def name(self) -> str:
        """The name that clients see: the given one, else the last part of the model's."""
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    def file_keys(self) -> tuple[str, ...]:
        """The keys in `api_key_file`, one a line; lines that begin with # are comments.

        Raises:
            ValueError: the file cannot be read, or a line is no key.
        """
        if self.api_key_file is None:
            return ()
        try:
            text = Path(self.api_key_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ValueError(f"api_key_file: cannot read {self.api_key_file}: {reason}") from None
        lines = enumerate(text.splitlines(), 1)
        where = f"api_key_file: {self.api_key_file} line"
        keys = (_key(line, f"{where} {number}") for number, line in lines if not _is_comment(line))
        return tuple(key for key in keys if key)

    def engine(self) -> EngineConfig:
        """The engine's part."""
        names = EngineConfig.__dataclass_fields__.keys() & Settings.model_fields.keys()
        return EngineConfig(**{name: getattr(self, name) for name in names})


def _is_comment(line: str) -> bool:
    return line.lstrip(f" \t{BYTE_ORDER_MARK}").startswith("#")


def _key(text: str, where: str) -> str:
    """A key as clients can send it and the list of keys can hold it; empty for a blank text.

    Raises:
        ValueError: there is none such; the message begins with `where` and does not show the key.
    """
    try:
        key = clean_key(text)
    except KeyTextError as error:
        raise ValueError(f"{where}: {error}") from None
    if "," in key:
        raise ValueError(f"{where}: a key holds no comma, which stands between keys")
    if len(key) > _LONGEST_KEY:
        raise ValueError(f"{where}: a key has at most {_LONGEST_KEY} characters, not {len(key)}")
    return key
