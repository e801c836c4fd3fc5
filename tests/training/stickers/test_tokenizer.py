"""The embedded tokenizer: whole words for the grammar, pieces for names, official prompts."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from goldens_dir import read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_samples import NAMES, random_scene, sample_tokenizer
from transformers import AutoTokenizer

from rediff_model.chat_template import (
    DEFAULT_QUESTION,
    SYSTEM,
    TextCodec,
    Turn,
    conversation,
    turn_with_picture,
)
from rediff_model.checkpoint import resolve
from training.stickers.grammar import compose
from training.stickers.templates import SLOTS, SURFACES
from training.stickers.tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    SPECIAL_TOKENS,
    save,
    slot_ids,
    train_tokenizer,
)

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = read_json("prompt/prompt.json")["prompts"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The saved tokenizer as transformers reads it."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save(sample_tokenizer(), folder)
    return AutoTokenizer.from_pretrained(folder)


def test_special_tokens_come_first() -> None:
    tokenizer = sample_tokenizer()
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert tokenizer.get_vocab_size() == 580


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    tokenizer = sample_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_words_of_the_grammar_are_whole() -> None:
    tokenizer = sample_tokenizer()
    for form in ("size", "colour", "pattern"):
        for phrases in SURFACES[form].values():
            assert all(len(tokenizer.encode(f" {phrase}").ids) == 1 for phrase in phrases)
    sentence = " is a plate at the bottom right of an oval star-shaped backdrop, than stickers."
    assert tokenizer.encode(sentence).tokens[-3:] == ["Ġthan", "Ġstickers", "."]
    assert len(tokenizer.encode(sentence).ids) == 17


def test_names_are_pieces() -> None:
    counts = [len(sample_tokenizer().encode(f" {name}").ids) for name in NAMES]
    assert 1.5 <= np.mean(counts) <= 3.5


def test_a_larger_vocabulary_shortens_names() -> None:
    captions = [compose(random_scene(i), np.random.default_rng(i)).text for i in range(300)]
    small, large = (train_tokenizer(captions, NAMES, size) for size in (540, 600))
    lengths = [sum(len(t.encode(f" {name}").ids) for name in NAMES) for t in (small, large)]
    assert lengths[0] > lengths[1]


def test_training_is_deterministic() -> None:
    captions = [compose(random_scene(i), np.random.default_rng(i)).text for i in range(100)]
    assert len({train_tokenizer(captions, NAMES, 500).to_str() for _ in range(3)}) == 1


def test_training_without_names_is_possible() -> None:
    assert train_tokenizer(["There are four stickers."], (), 400).encode("four").ids


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_slots_mark_the_tokens_of_content_words(seed: int) -> None:
    tokenizer = sample_tokenizer()
    caption = compose(random_scene(seed), np.random.default_rng(seed))
    ids, kinds, owners = slot_ids(tokenizer, caption)
    assert tokenizer.decode(ids) == caption.text
    assert len(kinds) == len(ids) == len(owners)
    for span in caption.spans:
        kind = 1 + SLOTS.index(span.slot)
        assert any(k == kind and o == span.sticker for k, o in zip(kinds, owners, strict=True))
    # Every run of one kind decodes to the phrases of its spans, in order.
    for slot in SLOTS:
        kind = 1 + SLOTS.index(slot)
        marked = "".join(
            tokenizer.decode([i]) for i, k in zip(ids, kinds, strict=True) if k == kind
        )
        phrases = [caption.text[s.start : s.end] for s in caption.spans if s.slot == slot]
        assert marked.replace(" ", "") == "".join(phrases).replace(" ", "")


def test_the_prompt_is_short() -> None:
    before, after = TextCodec(sample_tokenizer()).encode_prompt(conversation([DEFAULT_QUESTION]))
    assert len(before) + len(after) <= 32


def test_transformers_reads_it(loaded: Any) -> None:
    tokenizer = sample_tokenizer()
    text = "A small hot air balloon sits on an oval plate."
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.mask_token_id) == (0, 1, 2)
    assert loaded.eos_token == END_OF_TEXT
    ids = loaded("<|start_header_id|>user<|end_header_id|><|eot_id|>")["input_ids"]
    assert (ids[0], ids[-2:]) == (3, [4, 5])
    assert loaded.decode(ids, skip_special_tokens=True) == "user"


@pytest.mark.parametrize("prompt", PROMPTS, ids=[p["turns"][0][:40] for p in PROMPTS])
def test_golden_prompt_is_what_the_chat_template_writes(
    loaded: Any, prompt: dict[str, Any]
) -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(prompt["turns"])]
    written = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert written == prompt["prompt"]


@pytest.mark.parametrize(
    ("texts", "turn"),
    [
        ((None, DEFAULT_QUESTION), turn_with_picture("", DEFAULT_QUESTION)),
        ((DEFAULT_QUESTION, None), turn_with_picture(DEFAULT_QUESTION, "")),
        (("Look: ", None, "\nWhat is it?"), turn_with_picture("Look: ", "\nWhat is it?")),
        (("  padded ", "\n", None, "\t"), turn_with_picture("padded \n", "")),
        (("One.", "Two.", None), turn_with_picture("One.\nTwo.", "")),
        ((" Two birds ",), Turn("user", "Two birds")),
    ],
)
def test_chat_template_takes_parts(loaded: Any, texts: tuple[str | None, ...], turn: Turn) -> None:
    parts = [{"type": "image"} if t is None else {"type": "text", "text": t} for t in texts]
    written = loaded.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    assert written == "".join(piece.text for piece in conversation([turn]))


def test_chat_template_strips_and_takes_a_system_turn(loaded: Any) -> None:
    other = [
        {"role": "system", "content": "\nBe brief. "},
        {"role": "user", "content": "  padded  \n"},
        {"role": "assistant", "content": " Two birds "},
        {"role": "user", "content": [{"type": "text", "text": " Hm?\t"}]},
    ]
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "padded"),
        Turn("assistant", "Two birds"),
        Turn("user", "Hm?"),
    ]
    written = loaded.apply_chat_template(other, tokenize=False, add_generation_prompt=True)
    assert written == "".join(piece.text for piece in conversation(turns))
    assert SYSTEM not in written


@pytest.mark.parametrize("name", ["embedded", "embedded-384"])
def test_checkpoints_of_the_package_have_this_template(name: str) -> None:
    config = resolve(name) / "tokenizer_config.json"
    assert json.loads(config.read_text(encoding="utf-8"))["chat_template"] == CHAT_TEMPLATE
