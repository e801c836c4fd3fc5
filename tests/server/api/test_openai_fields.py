"""Fields of a chat beside those that are read: refused, told, or accepted."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.openai_body import ChatBody
from server.errors import BadBody

MESSAGES = [{"role": "user", "content": "x"}]


def warning(**fields: Any) -> str:
    return ChatBody.model_validate({"messages": MESSAGES, **fields}).check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}),
        ("response_format", "text"),
        ("tool_choice", "required"),
        ("tool_choice", "any"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("continue_final_message", True),
    ],
)
def test_what_there_is_not_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadBody) as caught:
        warning(**{name: value})
    assert (caught.value.status, caught.value.param) == (400, name)
    assert caught.value.message.startswith(f"{name} must be ")
    assert warning(**{name: None}) == ""


def test_values_that_ask_nothing_are_accepted() -> None:
    assert not warning(
        n=1,
        response_format={"type": "text"},
        tool_choice="auto",
        function_call="none",
        modalities=["text"],
        tools=[],
        functions=[],
        top_p=1.0,
        top_k=-1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        use_beam_search=False,
    )


def test_what_has_no_effect_is_told() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    fields = {"top_p": 0.9, "presence_penalty": 1, "tools": tools, "logit_bias": {"5": 1}}
    told = "without effect here: top_p, presence_penalty, logit_bias, tools"
    assert warning(**fields) == told
    constrained = {"guided_regex": "a+", "structured_outputs": {}, "web_search_options": {}}
    told = "without effect here: web_search_options, guided_regex, structured_outputs"
    assert warning(**constrained, best_of=1) == told


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tokens_per_steps", "tokens_per_step"),
        ("token_per_step", "tokens_per_step"),
        ("tokensPerStep", "tokens_per_step"),
        ("tokens-per-step", "tokens_per_step"),
        ("TOKENS_PER_STEP", "tokens_per_step"),
        ("step", "steps"),
        ("canvas", "canvas_length"),
        ("canvas_size", "canvas_length"),
        ("block_size", "block_length"),
        ("blockLength", "block_length"),
        ("refine_frac", "refine_fraction"),
        ("reveal_thresh", "reveal_threshold"),
        ("extra_refinement_steps", "extra_refine_steps"),
        ("presets", "preset"),
        ("cfgscale", "cfg_scale"),
        ("re_masking", "remasking"),
        ("timeout", "timeout_seconds"),
        ("timeout_second", "timeout_seconds"),
        ("max_token", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("log_probs", "logprobs"),
        ("stream_option", "stream_options"),
    ],
)
def test_a_near_miss_is_refused_with_the_name_that_was_meant(name: str, hint: str) -> None:
    with pytest.raises(BadBody, match=f"did you mean {hint}?") as caught:
        warning(**{name: 2})
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "unknown_field", name)
    assert warning(**{name: None}) == ""


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("extra_body", "stand in the body itself"),
        ("sampling", "stand in the body itself"),
        ("return_tokens", "belongs to /caption"),
        ("prompt", "stand in messages"),
        ("image", "stand in messages"),
        ("draft", "belongs to /caption and /refine"),
    ],
)
def test_a_field_that_stands_elsewhere_is_refused_with_its_place(name: str, hint: str) -> None:
    with pytest.raises(BadBody, match=hint) as caught:
        warning(**{name: {"tokens_per_step": 2}})
    assert caught.value.param == name


OPENAI = """audio metadata moderation parallel_tool_calls prediction prompt_cache_key
prompt_cache_retention reasoning_effort safety_identifier service_tier store user verbosity"""
VLLM = """length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
skip_special_tokens truncate_prompt_tokens prompt_logprobs allowed_token_ids bad_words
add_generation_prompt documents chat_template chat_template_kwargs mm_processor_kwargs request_id
logits_processors return_tokens_as_token_ids return_token_ids cache_salt"""
FRONT_ENDS = """chat_id session_id id background_tasks features variables model_item tool_ids files
params filter_ids parent_id message_id models route transforms provider usage reasoning think
options keep_alive format enable_thinking citations api_key fallbacks seed temperature"""


@pytest.mark.parametrize("name", f"{OPENAI} {VLLM} {FRONT_ENDS}".split())
def test_fields_of_others_are_accepted(name: str) -> None:
    assert "did you mean" not in warning(**{name: 0})


def test_names_are_compared_up_to_a_number_and_a_length() -> None:
    with pytest.raises(BadBody, match="more than 64 unknown fields"):
        warning(**{f"tokens_per_stop{number}": 1 for number in range(9000)})
    assert warning(**{f"{'x' * 30}{number}": 1 for number in range(64)}) == ""
    assert warning(**{"tokens_per_step" * 100_000: 1}) == ""
