"""What a server says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from server.client.errors import ServerRefused

Health = Literal["ready", "loading", "draining", "failed"]


_BY_CODE: Final[dict[str, Health]] = {
    "not_ready": "loading",
    "draining": "draining",
    "engine_down": "failed",
}


def health_of(error: ServerRefused) -> Health:
    """What a refusal of `/health/ready` means.

    Raises:
        ServerRefused: the error itself, if it is another one.
    """
    if error.code not in _BY_CODE:
        raise error
    return _BY_CODE[error.code]


class Version(BaseModel):
    """Answer of `/version`; what a server adds to it stands in `model_extra`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str
    version: str = ""
    status: Health = "ready"
    device: str = ""
    dtype: str = ""
    canvas_length: int | None = None
    """Tokens of a caption by default; None while the model loads."""
    preset: str = ""
    domain: str = ""
    """Which pictures the model was trained for, in words for users."""
    taught_prompts: list[str] = []
    """The only prompts that it was trained on; empty: it takes any text."""
    limits: dict[str, int] = {}
    """Of a request."""
    image_formats: list[str] = []
