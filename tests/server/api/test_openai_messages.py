"""Messages of a chat as a conversation about one picture."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from rediff_model.chat_template import Turn, conversation
from server.api.openai_body import Message
from server.api.openai_messages import LAST_PICTURE, NO_PICTURE, NO_TOOLS, Chat, read_messages
from server.errors import BadBody


def picture(url: str = "data:1") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def said(role: str, *content: Any, **fields: Any) -> dict[str, Any]:
    parts = content[0] if len(content) == 1 and not isinstance(content[0], dict) else list(content)
    return {"role": role, "content": parts, **fields}


def read(*messages: dict[str, Any]) -> Chat:
    return read_messages(TypeAdapter(list[Message]).validate_python(messages))


@pytest.mark.parametrize(
    ("parts", "turn"),
    [
        ((picture(), text("What?")), "<image>\nWhat?"),
        ((text("What?"), picture()), "What?\n<image>"),
        ((text("Look: "), picture(), text("\nWhat is it?")), "Look: <image>\nWhat is it?"),
        ((text("Look:"), picture(), text("What is it?")), "Look:\n<image>\nWhat is it?"),
        ((text("  padded  "), text("Two"), picture(), text(" \n")), "padded  Two\n<image>"),
        ((text("One."), text(""), text("Two."), picture()), "One.\nTwo.\n<image>"),
        ((text("the <image> tag"), picture()), "the <image> tag\n<image>"),
    ],
)
def test_the_picture_stands_between_its_texts(parts: tuple[dict[str, Any], ...], turn: str) -> None:
    chat = read(said("user", *parts))
    assert (chat.image_url, chat.warnings) == ("data:1", ())
    written = "".join(piece.text for piece in conversation(chat.turns))
    assert f"user<|end_header_id|>\n\n{turn}<|eot_id|>" in written


def test_turns_keep_their_order_and_system_texts_come_first() -> None:
    chat = read(
        said("system", "Be brief. "),
        said("assistant", "Hello."),
        said("user", picture()),
        said("assistant", text("A dog."), {"type": "refusal", "refusal": "No more."}),
        said("developer", text("Be kind.")),
        said("user", "Is it big?"),
        said("user", text("Or"), text("small?")),
    )
    assert chat.turns == (
        Turn("system", "Be brief.\n\nBe kind."),
        Turn("assistant", "Hello."),
        Turn("user", "", ""),
        Turn("assistant", "A dog.\nNo more."),
        Turn("user", "Is it big?"),
        Turn("user", "Or\nsmall?"),
    )
    assert chat.warnings == ()


def test_the_last_picture_counts() -> None:
    chat = read(
        said("user", text("A"), picture("data:1"), text("B")),
        said("assistant", "C"),
        said("user", picture("data:2"), text("D"), picture("data:3"), text("E")),
        said("assistant", "F"),
        said("user", "G"),
    )
    assert chat.image_url == "data:3"
    assert chat.turns == (
        Turn("user", "A\nB"),
        Turn("assistant", "C"),
        Turn("user", "D\n", "\nE"),
        Turn("assistant", "F"),
        Turn("user", "G"),
    )
    assert chat.warnings == (LAST_PICTURE,)


@pytest.mark.parametrize("content", [None, "", "  ", []])
def test_what_tools_said_is_left_out(content: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chat = read(
        said("system", ""),
        said("user", picture(), text("A")),
        {"role": "assistant", "content": content, "tool_calls": [call]},
        said("tool", "42", tool_call_id="1"),
        said("function", "43", name="f"),
    )
    assert chat.turns == (Turn("user", "", "\nA"),)
    assert chat.warnings == (NO_TOOLS,)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((said("user", "Generate a title for this chat."),), NO_PICTURE),
        ((said("system", "x"), said("assistant", "y")), NO_PICTURE),
        ((said("user", []),), NO_PICTURE),
        ((said("user", picture()), said("assistant", "x")), "last message must be the user's"),
        ((said("assistant", picture()), said("user", "x")), "not the assistant's"),
        ((said("tool", picture()), said("user", "x")), "not the tool's"),
        ((said("user", picture(), {"type": "input_audio"}),), "must be text or image_url"),
        ((said("user", picture(), {"type": "text"}),), "must be text or image_url"),
        ((said("user", {"type": "image_url"}),), "must be text or image_url"),
    ],
)
def test_what_is_no_conversation_about_a_picture(
    messages: tuple[dict[str, Any], ...], reason: str
) -> None:
    with pytest.raises(BadBody) as caught:
        read(*messages)
    assert reason in caught.value.message
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_the_message_says_what_to_send_and_warnings_fit_a_header() -> None:
    assert '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}' in NO_PICTURE
    for warning in (LAST_PICTURE, NO_TOOLS):
        assert warning.isascii()
        assert warning.isprintable()
