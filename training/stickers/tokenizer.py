"""The embedded model's tokenizer: byte-level BPE, small, in the official special roles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rediff_model.chat_template import DEFAULT_QUESTION, SYSTEM
from training.stickers.templates import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from training.stickers.grammar import Caption, Span

BOS = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
MASK = "<|mdm_mask|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"
SPECIAL_TOKENS = (BOS, END_OF_TEXT, MASK, START_HEADER, END_HEADER, END_OF_TURN)
"""Their ids are 0 to 5 in this order. End of text is also the padding."""

CHAT_TEMPLATE = (
    # Parts of a turn stand on lines of their own, unless there is white space between them.
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}"
    f"{{{{ '{START_HEADER}system{END_HEADER}\\n\\n{SYSTEM}{END_OF_TURN}' }}}}"
    "{% endif %}"
    "{% for message in messages %}"
    f"{{{{ '{START_HEADER}' + message['role'] + '{END_HEADER}\\n\\n' }}}}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% set turn = namespace(text='') %}"
    "{% for part in message['content'] %}"
    "{% set piece = part['text'] if part['type'] == 'text' else '<image>' %}"
    "{% set seam = turn.text[-1:].strip() and piece[:1].strip() %}"
    "{% set turn.text = turn.text + ('\\n' if seam else '') + piece %}"
    "{% endfor %}{{ turn.text | trim }}{% endif %}"
    f"{{{{ '{END_OF_TURN}' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{START_HEADER}assistant{END_HEADER}\\n\\n' }}}}"
    "{% endif %}"
)

# Words take the space before them, and what follows a hyphen is a piece of its own with it.
_PIECES = r"[ -]?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_TEMPLATE_WEIGHT = 200
"""How often each wording of the grammar and the prompt counts against one name."""


def train_tokenizer(
    captions: Iterable[str], names: Sequence[str], vocabulary_size: int = 1000
) -> Tokenizer:
    """A tokenizer in which template words are whole and names are a few pieces.

    Names are cut out of the captions, so that only the words around them have their real
    frequencies; each name then counts a little, and gets what merges the vocabulary has left.
    Every text can be encoded and comes back the same.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(captions, names), trainer)
    tokenizer.add_tokens([AddedToken(SYSTEM, normalized=False)])
    return tokenizer


def save(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which AutoTokenizer loads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "mask_token": MASK,
        "additional_special_tokens": [START_HEADER, END_HEADER, END_OF_TURN],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def slot_ids(tokenizer: Tokenizer, caption: Caption) -> tuple[list[int], list[int], list[int]]:
    """Token ids of a caption, and beside each the kind of content it holds and whose it is.

    Kinds: 0 is template text, 1 + i is `SLOTS[i]`. Whose: the sticker's index, -1 for the scene's
    and for template text. A token belongs to a span if it overlaps it.
    """
    encoding = tokenizer.encode(caption.text, add_special_tokens=False)
    kinds = [0] * len(encoding.ids)
    stickers = [-1] * len(encoding.ids)
    for span, (first, last) in zip(
        caption.spans, token_ranges(encoding.offsets, caption.spans), strict=True
    ):
        kinds[first:last] = [_SLOT_INDEX[span.slot]] * (last - first)
        stickers[first:last] = [span.sticker] * (last - first)
    return encoding.ids, kinds, stickers


def token_ranges(
    offsets: Sequence[tuple[int, int]], spans: Sequence[Span]
) -> list[tuple[int, int]]:
    """First token and the one after the last that overlap each span; both lists in order."""
    ranges = []
    token = 0
    for span in spans:
        while token < len(offsets) and offsets[token][1] <= span.start:
            token += 1
        first = token
        while token < len(offsets) and offsets[token][0] < span.end:
            token += 1
        ranges.append((first, token))
    return ranges


_SLOT_INDEX = {slot: index for index, slot in enumerate(SLOTS, start=1)}


def _corpus(captions: Iterable[str], names: Sequence[str]) -> Iterator[str]:
    """Captions without their names, the fixed words of a prompt, and every name."""
    ordered = sorted(map(re.escape, names), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(ordered)})(?![\w-])") if ordered else None
    for caption in captions:
        yield pattern.sub("", caption) if pattern else caption
    prompt = f"\n\nsystem\n\nuser\n\nassistant\n\n\n{DEFAULT_QUESTION}"
    for _ in range(_TEMPLATE_WEIGHT):
        yield from (prompt, "system", "user", "assistant")
    for name in names:
        yield f" {name}"
