"""The server's settings: from the command line, else from `REDIFF_…`, else the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.engine.config import EngineConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

EMBEDDED: Final = Path(__file__).parent.parent / "rediff_model" / "checkpoints" / "embedded"
"""The checkpoint that ships with the package."""

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1024, le=2**34)]


class BadSettings(ValueError):
    """Settings that cannot be used; the message is one line and names the setting."""


class Settings(BaseSettings):
    """What `rediff serve` can be told."""

    model_config = SettingsConfigDict(env_prefix="REDIFF_", env_ignore_empty=True, frozen=True)

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8000, ge=0, le=65535)
    model: str = Field(str(EMBEDDED), min_length=1)
    revision: str | None = None
    served_model_name: str | None = Field(None, min_length=1, max_length=200)
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    max_batch: int = Field(16, ge=1, le=4096)
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
    log_level: Literal["debug", "info", "warning", "error"] = "info"

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
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            if not name:
                raise BadSettings(message) from None
            raise BadSettings(f"{name}: {message}, got {first['input']!r}") from None

    @property
    def name(self) -> str:
        """The name that clients see: the given one, else the last part of the model's."""
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    def engine(self) -> EngineConfig:
        """The engine's part."""
        return EngineConfig(
            **{name: getattr(self, name) for name in EngineConfig.__dataclass_fields__}
        )
