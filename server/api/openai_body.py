"""The chat-completion body as OpenAI clients send it, and what of it we use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from server.api.openai_fields import check_fields
from server.api.schemas import MOST_ALTERNATIVES, SamplingOptions
from server.errors import BadBody


class ImageUrl(BaseModel):
    """Where a picture is: a data URL."""

    model_config = ConfigDict(extra="ignore")

    url: str

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value


class Part(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None

    @property
    def words(self) -> str | None:
        """The text, also of a part in which an assistant refuses."""
        return self.text if self.text is not None else self.refusal


def _content_kind(content: object) -> str:
    return "parts" if isinstance(content, list) else "text"


# Told apart by hand: of an undecided union the first error would be that a list is no text.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Field(max_length=64), Tag("parts")],
    Discriminator(_content_kind),
]


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None

    def parts(self) -> list[Part]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [Part(type="text", text=self.content)]
        return self.content or []


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """What a client wants of the answer's form; outlives the body, which holds the picture."""

    stops: tuple[str, ...]
    top_logprobs: int | None
    """Alternatives of each token; None: no logprobs."""
    with_usage: bool
    """A stream ends with its usage."""


Length = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ChatBody(SamplingOptions):
    """Body of `POST /v1/chat/completions`. Fields of other servers are accepted.

    The sampler's settings stand beside OpenAI's fields (`extra_body` of the client).
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    n: int | None = None
    stop: str | list[str] | None = Field(default=None, description="Up to 4 ending texts.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(default=None, description="Add each token's confidence.")
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)
    template: str | None = Field(default=None, description="Fixed text with holes.")
    response_format: Any = Field(default=None, description='Nothing but {"type": "text"}.')
    tool_choice: Any = Field(default=None, description="none or auto.")
    timeout_seconds: float | None = None
    priority: int = Field(default=0, ge=-(2**31), le=2**31)

    def form(self) -> Form:
        """What the answer shall look like.

        Raises:
            BadBody: more than four stop texts, or an empty one.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > 4 or not all(stops):
            raise BadBody(400, "invalid_value", "stop takes up to 4 texts, none empty", "stop")
        top = (self.top_logprobs or 0) if self.logprobs else None
        with_usage = self.stream_options is not None and self.stream_options.include_usage
        return Form(stops, top, with_usage)

    def check(self) -> str:
        """Refuse what would be silently lost; a warning of what has no effect, or nothing.

        Raises:
            BadBody: a field asks for what there is not, or is nearly one of those that are read.
        """
        extra = self.model_extra or {}
        warning = check_fields(dict(self), extra, ChatBody.model_fields)
        if self.stream_options is not None and not self.stream:
            message = "stream_options is for streams: set stream"
            raise BadBody(400, "invalid_value", message, "stream_options")
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs is for logprobs: set logprobs"
            raise BadBody(400, "invalid_value", message, "top_logprobs")
        return warning


def cut_at_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the first stop, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def chunk(
    head: dict[str, Any],
    delta: dict[str, Any],
    finish: str | None = None,
    logprobs: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """One chunk of a streamed answer; `fields` are further ones of its choice."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return head | {"object": "chat.completion.chunk", "choices": [choice | fields]}
