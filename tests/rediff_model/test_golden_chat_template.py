"""Prompt strings and ids against those recorded from the official implementation."""

from typing import Any

import pytest
from goldens_dir import GOLDENS, read_json
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from rediff_model.chat_template import IMAGE, START_OF_TEXT, Piece, TextCodec, Turn, conversation

RECORDED = read_json("prompt/prompt.json")
TAG = "<image>"


def toy_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(GOLDENS / "prompt" / RECORDED["toy_tokenizer"]))


def recorded_turn(number: int, text: str) -> Turn:
    before, tag, after = text.partition(TAG)
    return Turn("assistant" if number % 2 else "user", before, after if tag else None)


def recorded_prompt(case: dict[str, Any]) -> tuple[Piece, ...]:
    return conversation([recorded_turn(*one) for one in enumerate(case["turns"])])


def with_placeholder(case: dict[str, Any], ids: tuple[list[int], list[int]]) -> list[int]:
    before, after = ids
    image = any(TAG in turn for turn in case["turns"])
    return [*before, RECORDED["image_placeholder_id"], *after] if image else before


@pytest.fixture(params=RECORDED["prompts"], ids=lambda case: " / ".join(case["turns"]))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    recorded: dict[str, Any] = request.param
    return recorded


def test_golden_text(case: dict[str, Any]) -> None:
    prompt = recorded_prompt(case)
    assert "".join(piece.text for piece in prompt) == case["prompt"]
    chunks = "".join("\0" if piece == IMAGE else piece.text for piece in prompt).split("\0")
    assert chunks == case["chunks"]


def test_golden_ids_of_training(case: dict[str, Any]) -> None:
    ids = TextCodec(toy_tokenizer()).encode_prompt(recorded_prompt(case))
    assert with_placeholder(case, ids) == case["ids_plain_concatenation"]


def test_golden_ids_of_inference(case: dict[str, Any]) -> None:
    ids = TextCodec(toy_tokenizer()).encode_prompt(recorded_prompt(case), "official")
    assert with_placeholder(case, ids) == case["ids_tokenizer_without_auto_bos"]


def test_golden_ids_of_inference_with_a_tokenizer_that_adds_a_start(case: dict[str, Any]) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START_OF_TEXT} $A", special_tokens=[(START_OF_TEXT, RECORDED["bos_id"])]
    )
    codec = TextCodec(tokenizer)
    prompt = recorded_prompt(case)
    official = with_placeholder(case, codec.encode_prompt(prompt, "official"))
    assert official == case["ids_tokenizer_with_auto_bos"]
    assert with_placeholder(case, codec.encode_prompt(prompt)) == case["ids_plain_concatenation"]
