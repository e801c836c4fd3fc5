"""From the messages of a chat to a conversation about one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rediff_model.chat_template import Turn, turn_with_picture
from server.errors import BadBody

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from server.api.openai_body import Message, Part

NO_PICTURE: Final = (
    "there is no picture: send one in a user message, as a content part"
    ' {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
)
LAST_PICTURE: Final = "only the last picture was looked at"
NO_TOOLS: Final = "messages of tools were left out: the model calls none"


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat asks."""

    image_url: str
    turns: tuple[Turn, ...]
    """The last one is the user's; without text it asks the default prompt."""
    warnings: tuple[str, ...] = ()
    """What of the messages was left out, in ASCII."""


def read_messages(messages: Sequence[Message]) -> Chat:
    """The conversation, with its last picture where the message has it.

    Texts of system and developer messages become one system turn. Messages of tools and empty
    ones of the assistant are left out.

    Raises:
        BadBody: no picture in a user message, a part of another kind, or another last speaker.
    """
    pictures = [
        (number, place)
        for number, message in enumerate(messages)
        for place, part in enumerate(_parts(message))
        if part.type == "image_url"
    ]
    if not pictures:
        raise _bad(NO_PICTURE)
    system: list[str] = []
    turns: list[Turn] = []
    url = ""
    for number, message in enumerate(messages):
        parts = _parts(message)
        if pictures[-1][0] == number:
            place = pictures[-1][1]
            source = parts[place].image_url
            assert source is not None
            url = source.url
            turns.append(turn_with_picture(_joined(parts[:place]), _joined(parts[place + 1 :])))
        elif message.role in ("system", "developer"):
            system.append(_joined(parts).strip())
        elif message.role == "user":
            turns.append(Turn("user", _joined(parts)))
        elif message.role == "assistant" and (text := _joined(parts)).strip():
            turns.append(Turn("assistant", text))
    if turns[-1].role != "user":
        raise _bad("the last message must be the user's")
    if text := "\n\n".join(filter(None, system)):
        turns.insert(0, Turn("system", text))
    warnings = [LAST_PICTURE] * (len(pictures) > 1)
    warnings += [NO_TOOLS] * any(one.role in ("tool", "function") for one in messages)
    return Chat(url, tuple(turns), tuple(warnings))


def _parts(message: Message) -> list[Part]:
    """The parts of a message's content, checked; a bare text is one of them."""
    parts = message.parts()
    for part in parts:
        if part.type == "image_url" and part.image_url is not None:
            if message.role != "user":
                raise _bad(f"a picture must stand in a user message, not the {message.role}'s")
        elif part.type not in ("text", "refusal") or part.words is None:
            raise _bad("a content part must be text or image_url with its value")
    return parts


def _joined(parts: Iterable[Part]) -> str:
    """The texts of parts, each on a line of its own unless there is white space between them."""
    whole = ""
    for part in parts:
        if part.words:
            seam = bool(whole) and not whole[-1].isspace() and not part.words[0].isspace()
            whole += "\n" * seam + part.words
    return whole


def _bad(message: str) -> BadBody:
    return BadBody(400, "invalid_value", message, "messages")
