"""The prompt around a picture: LLaDA-V's chat template, and text to ids and back.

Special tokens come only from the template. Text of users is never searched for them, so that a
question which spells `<|mdm_mask|>` or `<|eot_id|>` is words, not control.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rediff_model.sampling.params import Compat

DEFAULT_QUESTION = "Please describe the image in detail."
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
START_OF_TEXT = "<|startoftext|>"
START_OF_HEADER = "<|start_header_id|>"
END_OF_HEADER = "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"


class TokenizerError(ValueError):
    """A tokenizer that cannot serve; the message names the file or the token."""


class Piece(NamedTuple):
    """A stretch of a prompt."""

    text: str
    template: bool = False
    """Fixed by the template, special tokens included; otherwise somebody's text."""


IMAGE = Piece("<image>", template=True)
"""Stands for the picture."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    """All of it, or what stands before the picture."""
    after: str | None = None
    """Text after the picture; None: the picture is not in this turn."""


Question = str | tuple[Turn, ...]
"""A text that follows the picture on a line of its own, or a whole conversation."""


def turn_with_picture(before: str, after: str) -> Turn:
    """A user's turn with the picture between two texts, on a line of its own unless a text has
    white space there."""
    if before and not before[-1].isspace():
        before += "\n"
    if after and not after[0].isspace():
        after = f"\n{after}"
    return Turn("user", before, after)


def asked(question: Question) -> tuple[Turn, ...]:
    """The turns of a question about a picture."""
    return (Turn("user", "", f"\n{question}"),) if isinstance(question, str) else question


def conversation(turns: Sequence[Turn | str], *, image: bool = True) -> tuple[Piece, ...]:
    """Render turns with the chat template, ending with the assistant's header.

    The first turn may be the system's; without one `SYSTEM` is put first. White space around a
    turn is dropped. Bare texts are the user's and the assistant's in turn, with the picture, if
    `image`, on a line before the first.
    """
    fixed = START_OF_TEXT
    if not turns or isinstance(turns[0], str) or turns[0].role != "system":
        fixed += f"{_header('system')}\n\n{SYSTEM}{END_OF_TURN}"
    pieces = []
    for number, turn in enumerate(turns):
        if isinstance(turn, str):
            if image and number == 0:
                turn = asked(turn)[0]
            else:
                turn = Turn("assistant" if number % 2 else "user", turn)
        fixed += _header(turn.role)
        if turn.after is None:
            pieces += [Piece(fixed, template=True), Piece(f"\n\n{turn.text.strip()}")]
        else:
            if before := turn.text.lstrip():
                pieces += [Piece(fixed, template=True), Piece(f"\n\n{before}")]
            else:
                pieces += [Piece(f"{fixed}\n\n", template=True)]
            pieces += [IMAGE, Piece(turn.after.rstrip())]
        fixed = END_OF_TURN
    return (*pieces, Piece(f"{fixed}{_header('assistant')}\n\n", template=True))


def _header(role: str) -> str:
    return f"{START_OF_HEADER}{role}{END_OF_HEADER}"


class TextCodec:
    """Text to ids and back with a `tokenizer.json`, special tokens apart.

    Raises:
        TokenizerError: the tokenizer lacks a special token of the template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        definition = json.loads(tokenizer.to_str())
        added = definition["added_tokens"]
        definition |= {"added_tokens": [], "post_processor": None}
        self._plain = Tokenizer.from_str(json.dumps(definition))
        # A vocabulary of whole words may hold special tokens itself; they are dropped from text.
        unknown = definition["model"].get("unk_token")
        self._reserved = {t["id"] for t in added if t["special"] and t["content"] != unknown}
        for token in (START_OF_TEXT, START_OF_HEADER, END_OF_HEADER, END_OF_TURN):
            if tokenizer.token_to_id(token) is None:
                raise TokenizerError(f"the tokenizer lacks the special token {token}")

    @classmethod
    def load(cls, path: Path) -> TextCodec:
        """Read a `tokenizer.json`.

        Raises:
            TokenizerError: it is missing, cannot be read or lacks a special token.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises nothing more specific.
            raise TokenizerError(f"{path} is not a usable tokenizer: {error}") from None
        return cls(tokenizer)

    @property
    def vocabulary_size(self) -> int:
        """Ids in use, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def spaced(self) -> tuple[int, ...]:
        """Tokens that begin with a space in the middle of a text."""
        anchor = self.encode("a")
        begin = len(self.decode(anchor))
        count = self._tokenizer.get_vocab_size(with_added_tokens=True)
        texts = self._tokenizer.decode_batch(
            [[*anchor, token] for token in range(count)], skip_special_tokens=True
        )
        return tuple(n for n, text in enumerate(texts) if text[begin:].startswith(" "))

    def encode(self, text: str) -> list[int]:
        """Ids of text; special tokens spelt out in it are ordinary text."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        return [token for token in ids if token not in self._reserved]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode_prompt(
        self, prompt: Sequence[Piece], compat: Compat = "default"
    ) -> tuple[list[int], list[int]]:
        """Ids before and after the picture; without one, all ids and none.

        With `compat="official"` they are those of the official inference path: it takes the first
        token off the text after the picture, expecting a start token there that only some
        tokenizers add, and such tokenizers start the prompt twice.
        """
        split = prompt.index(IMAGE) if IMAGE in prompt else len(prompt)
        before, after = self._ids(prompt[:split]), self._ids(prompt[split + 1 :])
        if compat == "official":
            added = self._tokenizer.encode("").ids
            if added:
                before = [*added, *before]
            else:
                after = after[1:]
        return before, after

    def _ids(self, pieces: Sequence[Piece]) -> list[int]:
        ids: list[int] = []
        for text, template in pieces:
            if template:
                ids += self._tokenizer.encode(text, add_special_tokens=False).ids
            else:
                ids += self.encode(text)
        return ids
