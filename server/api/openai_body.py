"""The chat-completion body as OpenAI clients send it, and what of it we use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from server.api.schemas import SamplingOptions
from server.errors import BadBody


class ImageUrl(BaseModel):
    """Where a picture is: a data URL."""

    model_config = ConfigDict(extra="ignore")

    url: str


class Part(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None


def _content_kind(content: object) -> str:
    return "parts" if isinstance(content, list) else "text"


# Told apart by hand: of an undecided union the first error would be that a list is no text.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Field(max_length=64), Tag("parts")],
    Discriminator(_content_kind),
]


class Message(BaseModel):
    """One message; only the user's is read."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


Length = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ChatBody(SamplingOptions):
    """Body of `POST /v1/chat/completions`. Fields of other servers are ignored.

    The sampler's settings stand beside OpenAI's fields (`extra_body` of the client).
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=64)
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    n: int | None = None
    stop: str | list[str] | None = Field(default=None, description="Up to 4 ending texts.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timeout_seconds: float | None = None
    priority: int = Field(default=0, ge=-(2**31), le=2**31)

    def stops(self) -> tuple[str, ...]:
        """The stop texts.

        Raises:
            BadBody: more than four, or an empty one.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > 4 or not all(stops):
            raise BadBody(400, "invalid_value", "stop takes up to 4 texts, none empty", "stop")
        return stops

    def question(self) -> Question:
        """The picture and the text of the one user message.

        Raises:
            BadBody: not exactly one user message, or not exactly one picture in it.
        """
        if any(message.role in ("assistant", "tool") for message in self.messages):
            raise _bad("the model answers one user message, not a conversation")
        users = [message for message in self.messages if message.role == "user"]
        if len(users) != 1:
            raise _bad(f"there must be one user message, got {len(users)}")
        content = users[0].content
        parts = [Part(type="text", text=content)] if isinstance(content, str) else content or []
        urls: list[str] = []
        texts: list[str] = []
        for part in parts:
            if part.type == "text" and part.text is not None:
                texts.append(part.text)
            elif part.type == "image_url" and part.image_url is not None:
                urls.append(part.image_url.url)
            else:
                raise _bad("a content part must be text or image_url with its value")
        if len(urls) != 1:
            raise _bad(f"there must be exactly one image_url, got {len(urls)}")
        return Question(urls[0], "\n".join(texts).strip() or None)


@dataclass(frozen=True, slots=True)
class Question:
    """What a chat asks."""

    image_url: str
    text: str | None
    """None is the default prompt."""


def _bad(message: str) -> BadBody:
    return BadBody(400, "invalid_value", message, "messages")


def cut_at_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the first stop, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def chunk(head: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """One chunk of a streamed answer."""
    return head | {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
