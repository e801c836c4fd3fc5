"""Rows, corrections, samples and batches as they are by default."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from goldens_dir import OWN, TOY_TOKENIZER, read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rediff_model.chat_template import TextCodec, conversation, turn_with_picture
from training.data.chat_format import Renderer
from training.data.collate import NOTHING_ID, Batch, collate, embed
from training.data.conversation import Pair, Row, Turn, parse_row
from training.data.problems import BadRow, Problem, Report
from training.data.sample import IMAGE_ID, Sample, Specials
from training.data.segment_labels import Occurrences, correct, locate
from training.data.vicrit import difference, prepare_vicrit
from training.loss.masked_diffusion import IGNORE

ROWS = {row["name"]: row for row in read_json("data_pipeline/samples.json", OWN)}
CAPTION = "two children are playing near the river. The sky is clear and blue."
TOKENIZER = Tokenizer.from_file(str(TOY_TOKENIZER))
RENDERER = Renderer(TOKENIZER, Specials.from_tokenizer(TOKENIZER))
END = RENDERER.specials.end_turn


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def row_of(answer: str, *pairs: Pair, question: str = "Please describe the image.") -> Row:
    turns = (Turn("user", f"<image>\n{question}"), Turn("assistant", answer))
    return Row("rows.jsonl:1", turns, "cat.jpg", pairs)


def flagged(sample: Sample) -> tuple[str, str]:
    """The wrong text of a sample, and what it is corrected to."""
    wrong = [i for i, flag in zip(sample.ids, sample.revise, strict=True) if flag]
    right = [i for i, flag in zip(sample.labels, sample.revise, strict=True) if flag]
    return TOKENIZER.decode(wrong), TOKENIZER.decode(right)


def kinds(problems: tuple[Problem, ...] | list[Problem]) -> list[str]:
    return [problem.kind for problem in problems]


def test_only_the_answer_and_its_end_are_trained() -> None:
    sample = RENDERER(row_of(CAPTION))
    answer = [*encode(CAPTION), END]
    assert list(sample.ids[sample.prompt_length :]) == answer
    assert list(sample.labels[sample.prompt_length :]) == answer
    assert set(sample.labels[: sample.prompt_length]) == {IGNORE}
    assert not sample.is_pair


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("<image>\nWhat is it?", "", "What is it?"),
        (" <image> What is it? ", "", "What is it?"),
        ("<image>", "", ""),
        ("What is it?\n<image>", "What is it?", ""),
        ("Look: <image>\nWhat is it?", "Look: ", "\nWhat is it?"),
        ("\n Look: <image> and say. \n", "Look: ", " and say."),
    ],
)
def test_the_prompt_is_the_one_that_is_served(text: str, before: str, after: str) -> None:
    sample = RENDERER(Row("x:1", (Turn("user", text), Turn("assistant", "A dog.")), "cat.jpg"))
    prompt = conversation([turn_with_picture(before, after)])
    first, second = TextCodec(TOKENIZER).encode_prompt(prompt)
    assert list(sample.ids[: sample.prompt_length]) == [*first, IMAGE_ID, *second]


def test_the_official_code_takes_a_tag_for_text_where_there_is_no_picture() -> None:
    turns = (Turn("user", "what is <image>?"), Turn("assistant", "a tag"))
    ids = replace(RENDERER, compat="official")(Row("x:1", turns)).ids
    assert IMAGE_ID not in ids
    asked = encode("\n\nwhat is <image>?")
    assert any(list(ids[at : at + len(asked)]) == asked for at in range(len(ids)))


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("Look: <image>\nWhat is it?", "<image>\nLook: \nWhat is it?"),
        ("  padded  <image>\n", "<image>\npadded"),
        (" <image>", "<image>"),
        ("<image> padded \n", "<image> padded \n"),
    ],
)
def test_the_official_code_moves_a_picture_to_the_front(text: str, moved: str) -> None:
    def ids(question: str) -> tuple[int, ...]:
        turns = (Turn("user", question), Turn("assistant", "A dog."))
        return replace(RENDERER, compat="official")(Row("x:1", turns, "cat.jpg")).ids

    assert ids(text) == ids(moved)
    chunks = [encode(chunk) for chunk in moved.split("<image>")]
    expected = [*encode("\n\n"), IMAGE_ID, *chunks[1], END]
    at = ids(text).index(IMAGE_ID)
    assert list(ids(text)[at - len(encode("\n\n")) :][: len(expected)]) == expected


def test_the_prompt_of_a_second_question_is_the_one_that_is_served() -> None:
    texts = ["What is it?", "A dog.", "Is it big?", "Yes."]
    roles = ["user", "assistant"] * 2
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=True))  # type: ignore[arg-type]
    sample = RENDERER(Row("x:1", turns))
    codec = TextCodec(TOKENIZER)
    first, _ = codec.encode_prompt(conversation(texts[:1], image=False))
    last = [*encode("Yes."), END]
    assert sample.prompt_length == len(first)
    assert list(sample.ids[-len(last) :]) == last
    trained = [i for i, label in zip(sample.ids, sample.labels, strict=True) if label != IGNORE]
    assert trained == [*encode("A dog."), END, *last]


@pytest.mark.parametrize(
    ("answer", "pair", "wrong", "right"),
    [
        (CAPTION, Pair("two children", "two birds"), "two children", "two birds"),
        (CAPTION, Pair("clear and blue", "black and red"), " clear and blue", " black and red"),
        ("It is old.\n\ntwo cups here", Pair("two cups", "two birds"), "two cups", "two birds"),
        ("A red umbrella.", Pair("red", "blue", start=2), " red", " blue"),
    ],
)
def test_segments_are_found_anywhere_in_the_answer(
    answer: str, pair: Pair, wrong: str, right: str
) -> None:
    sample = RENDERER(row_of(answer, pair))
    assert flagged(sample) == (wrong, right)
    assert len(sample.ids) == len(RENDERER(row_of(answer)).ids)


def test_the_question_is_not_searched() -> None:
    row = row_of("Yes, there is a red umbrella.", Pair("red", "blue"), question="A red umbrella?")
    sample = RENDERER(row)
    assert flagged(sample) == (" red", " blue")
    assert not any(sample.revise[: sample.prompt_length])


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        (Pair("a yellow sign", "a red sign"), "missing"),
        (Pair("child", "bird"), "missing"),
        (Pair("river", "river"), "identical"),
        (Pair("children", "very big grey old dogs"), "unequal"),
        (Pair("The", "A", start=3), "missing"),
    ],
)
def test_a_row_without_a_usable_pair_is_not_trained(pair: Pair, kind: str) -> None:
    with pytest.raises(BadRow) as raised:
        RENDERER(row_of(CAPTION, pair))
    assert raised.value.problem.kind == "pairless"
    assert raised.value.problem.where == "rows.jsonl:1"
    assert kind in raised.value.problem.reason
    assert RENDERER(row_of(CAPTION, pair, Pair("blue", "red"))).is_pair


@pytest.mark.parametrize(
    ("occurrences", "starts"), [("unique", []), ("first", [11]), ("all", [11, 30])]
)
def test_several_occurrences(occurrences: Occurrences, starts: list[int]) -> None:
    answer = "There is a red umbrella and a red umbrella near the wall."
    segments, problems = locate([answer], [Pair("red", "blue")], "x:1", occurrences)
    assert [segment.start for segment in segments] == starts
    assert kinds(problems) == ([] if starts else ["ambiguous"])


def test_as_many_pairs_as_occurrences_take_one_each() -> None:
    answers = ["a red cup and a red hat", "a red dog"]
    pairs = [Pair("red", colour) for colour in ("blue", "green", "white")]
    segments, problems = locate(answers, pairs, "x:1")
    assert not problems
    places = [(s.answer, s.start, s.target) for s in segments]
    assert places == [(0, 2, "blue"), (0, 16, "green"), (1, 2, "white")]


def test_of_overlapping_pairs_the_first_stays() -> None:
    pairs = [Pair("two cups and a plate", "a table and two cups"), Pair("cups and a", "hats and a")]
    segments, problems = locate(["There are two cups and a plate."], pairs, "x:1")
    assert [segment.start for segment in segments] == [10]
    assert kinds(problems) == ["overlapping"]


@pytest.mark.parametrize(
    ("answer", "org", "start"),
    [("一只红色的猫", "红色", 2), ("红cat", "cat", 1), ("a红色", "红色", 1)],
)
def test_scripts_without_spaces_have_no_word_boundaries(answer: str, org: str, start: int) -> None:
    segments, _ = locate([answer], [Pair(org, "x")], "x:1")
    assert [segment.start for segment in segments] == [start]


def test_part_of_a_word_is_passed_over() -> None:
    segments, _ = locate(["categories of a cat, a cat's"], [Pair("cat", "dog")], "x:1", "all")
    assert [segment.start for segment in segments] == [16, 23]


def test_several_corrections_of_other_length_hold() -> None:
    row = row_of(CAPTION, Pair("two children", "two birds"), Pair("blue", "red"))
    assert flagged(RENDERER(row)) == ("two children blue", "two birds red")


def test_a_correction_that_changes_tokens_outside_its_segment_is_left_out() -> None:
    # " In" is two tokens, the space and the word; " pn" splits elsewhere.
    segments, _ = locate(["a In"], [Pair("I", "p", start=2)], "x:1")
    correction, problems = correct("a In", segments, TOKENIZER, "x:1")
    assert kinds(problems) == ["unaligned"]
    assert correction.labels == correction.ids
    assert not any(correction.revise)


WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "black",
    "white",
    "cup",
    "cups",
    "dog",
    "river",
    "sky",
    ".",
    ",",
]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_labels_spell_the_corrected_answer(data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=3, max_size=12))
    answer = " ".join(words)
    pairs = data.draw(
        st.lists(
            st.builds(Pair, st.sampled_from(words), st.sampled_from(WORDS)), min_size=1, max_size=3
        )
    )
    segments, _ = locate([answer], pairs, "x:1", data.draw(st.sampled_from(["first", "all"])))
    correction, problems = correct(answer, segments, TOKENIZER, "x:1")
    offsets = TOKENIZER.encode(answer, add_special_tokens=False).offsets
    flagged_places = [at for at, flag in zip(offsets, correction.revise, strict=True) if flag]
    expected = answer
    used = 0
    for segment in sorted(segments, key=lambda s: -s.start):
        if any(start < segment.end and end > segment.start for start, end in flagged_places):
            expected = expected[: segment.start] + segment.target + expected[segment.end :]
            used += 1
    assert used + len(problems) == len(segments)
    assert list(correction.ids) == encode(answer)
    assert TOKENIZER.decode(list(correction.labels)) == expected
    unflagged = [not flag for flag in correction.revise]
    for token, label, same in zip(correction.ids, correction.labels, unflagged, strict=True):
        assert token == label or not same


@pytest.mark.parametrize(
    ("image", "turns", "reason"),
    [
        (None, (Turn("user", "<image>\nWhat?"), Turn("assistant", "A dog.")), "no picture"),
        ("a.png", (Turn("user", "What?"), Turn("assistant", "A dog.")), "one picture"),
        ("a.png", (Turn("user", "<image><image>"), Turn("assistant", "A dog.")), "one picture"),
        ("a.png", (Turn("user", "Hi"), Turn("assistant", "<image> A dog.")), "assistant"),
        (None, (Turn("user", "What?"), Turn("assistant", " \n")), "empty answer"),
        (None, (Turn("user", "What?"), Turn("assistant", "A<|eot_id|>")), "eot_id"),
        (None, (Turn("assistant", "A dog."),), "no question"),
    ],
)
def test_unusable_conversations(image: str | None, turns: tuple[Turn, ...], reason: str) -> None:
    with pytest.raises(BadRow, match=reason) as raised:
        RENDERER(Row("x:1", turns, image))
    assert raised.value.problem.kind == "malformed"


def test_the_canvas_is_filled_and_cut() -> None:
    answer = encode(CAPTION)
    for length in (len(answer) + 9, 5):
        renderer = Renderer(TOKENIZER, RENDERER.specials, canvas_length=length)
        sample = renderer(row_of(CAPTION))
        canvas = [*answer, *[END] * 10][:length]
        assert list(sample.ids[sample.prompt_length :]) == canvas
        assert list(sample.labels[sample.prompt_length :]) == canvas
    with pytest.raises(BadRow) as raised:
        renderer(row_of(CAPTION, Pair("blue", "red")))
    assert raised.value.problem.kind == "truncated"


def with_draft(draft: Any) -> Row:
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": CAPTION},
        {"from": "human", "value": "And?"},
        {"from": "gpt", "value": "No more."},
    ]
    return parse_row({"conversations": turns, "image": "cat.jpg", "draft": draft}, "rows.jsonl:7")


@pytest.mark.parametrize("draft", ["A child plays.", f"{CAPTION} {CAPTION}", "", None])
def test_a_draft_lies_beside_the_first_answer(draft: str | None) -> None:
    sample = RENDERER(with_draft(draft))
    said = encode(draft or "")[: len(encode(CAPTION))]
    start = sample.prompt_length
    if not draft:
        assert sample.others == ()
        assert collate([sample], [5], pad_id=0).others_BL is None
        return
    assert len(sample.others) == len(sample.ids)
    assert list(sample.others[start : start + len(said)]) == said
    assert set(sample.others[:start]) | set(sample.others[start + len(said) :]) == {-1}
    plain = RENDERER(row_of("A dog.", question="What?"))
    batch = collate([plain, sample], [1, 5], pad_id=0, max_length=start + 4 + len(said) - 2)
    assert batch.others_BL is not None
    assert batch.others_BL.shape == batch.ids_BL.shape
    first = batch.prompt_lengths[1]
    assert batch.others_BL[1, first:].tolist() == said[:-2]
    assert set(batch.others_BL[0].tolist()) == {-1}


def test_a_draft_may_be_no_number_and_hold_no_special_token() -> None:
    with pytest.raises(BadRow, match="draft must be text, got 3"):
        with_draft(3)
    with pytest.raises(BadRow, match="eot_id"):
        RENDERER(with_draft("A dog.<|eot_id|>"))
    official = Renderer(TOKENIZER, RENDERER.specials, compat="official")
    assert official(with_draft("A dog.")) == official(with_draft(None))


def test_a_tokenizer_without_the_special_tokens_is_refused() -> None:
    from tokenizers.models import BPE

    with pytest.raises(ValueError, match="startoftext"):
        Specials.from_tokenizer(Tokenizer(BPE()))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "object"),
        ({}, "no answer"),
        ({"conversations": "hi"}, "list, got str"),
        ({"conversations": [{"from": "gpt"}]}, "from and value"),
        ({"conversations": [{"from": "cat", "value": "x"}]}, "'cat'"),
        ({"conversations": [{"from": [], "value": "x"}]}, r"\[\]"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "no answer"),
        ({"conversations": [{"from": "gpt", "value": "x"}], "image": ["a", "b"]}, "one name"),
        ({"conversations": [{"from": "gpt", "value": "x"}], "image": 3}, "3"),
        ({"conversations": [{"from": "gpt", "value": "x"}], "revise": [{"org": "a"}]}, "target"),
        (
            {
                "conversations": [{"from": "gpt", "value": "x"}],
                "revise": [{"org": " ", "target": "a"}],
            },
            "target",
        ),
        (
            {
                "conversations": [{"from": "gpt", "value": "x"}],
                "revise": [{"org": "a", "target": "b", "start": "0"}],
            },
            "'0'",
        ),
    ],
)
def test_malformed_rows(value: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason) as raised:
        parse_row(value, "rows.jsonl:7")
    assert raised.value.problem.kind == "malformed"
    assert raised.value.problem.where == "rows.jsonl:7"


def test_flags_stay_on_their_tokens_in_a_mixed_batch() -> None:
    samples = [RENDERER(parse_row(ROWS[name], name)) for name in ("pair_one", "big_image_normal")]
    batch = collate(samples, [26, 76], pad_id=RENDERER.specials.pad)
    flags = batch.revise_BL[0]
    assert TOKENIZER.decode(batch.ids_BL[0][flags].tolist()) == " clear and blue"
    assert TOKENIZER.decode(batch.labels_BL[0][flags].tolist()) == " black and red"
    assert not batch.revise_BL[1].any()
    for i, (sample, rows) in enumerate(zip(samples, (26, 76), strict=True)):
        length = len(sample.ids) + rows - 1
        assert batch.image_rows[i] == int((batch.ids_BL[i] == IMAGE_ID).sum()) == rows
        assert batch.allowed_BL is not None
        assert batch.allowed_BL[i].tolist() == [j < length for j in range(batch.ids_BL.shape[1])]
        assert (batch.ids_BL[i, length:] == NOTHING_ID).all()
        assert (batch.labels_BL[i, length:] == IGNORE).all()
        prompt = batch.prompt_lengths[i]
        assert batch.labels_BL[i, prompt] != IGNORE
        assert (batch.labels_BL[i, :prompt] == IGNORE).all()


def test_a_cut_sample_must_keep_something_to_train() -> None:
    pair = RENDERER(row_of(CAPTION, Pair("blue", "red")))
    cut = len(pair.ids) - 4
    with pytest.raises(BadRow) as raised:
        collate([pair], [1], pad_id=0, max_length=cut)
    assert raised.value.problem.kind == "truncated"
    plain = RENDERER(row_of(CAPTION))
    assert collate([plain], [1], pad_id=0, max_length=cut).ids_BL.shape == (1, cut)
    with pytest.raises(BadRow):
        collate([plain], [1], pad_id=0, max_length=plain.prompt_length)
    with pytest.raises(ValueError, match="2 samples"):
        collate([plain, pair], [1], pad_id=0)


def test_embed_puts_pictures_in_place() -> None:
    table = torch.nn.Embedding(700, 4)
    samples = [
        RENDERER(row_of(CAPTION)),
        RENDERER(parse_row(ROWS["text_only"], "x")),
        RENDERER(row_of("A dog.")),
    ]
    batch = collate(samples, [3, 0, 2], pad_id=0)
    features = [torch.randn(3, 4), None, torch.randn(2, 4)]
    embeds = embed(batch.ids_BL, table, features)
    for i in (0, 2):
        feature = features[i]
        assert feature is not None
        assert torch.equal(embeds[i][batch.ids_BL[i] == IMAGE_ID], feature)
    assert not embeds[batch.ids_BL == NOTHING_ID].any()
    text = batch.ids_BL >= 0
    assert torch.equal(embeds[text], table(batch.ids_BL[text]))
    with pytest.raises(ValueError, match="2 rows for 3 places"):
        embed(batch.ids_BL, table, [torch.zeros(2, 4), None, torch.zeros(2, 4)])
    short = collate(samples[:1], [100], pad_id=0, max_length=60, compat="official")
    assert embed(short.ids_BL, table, [torch.ones(100, 4)]).shape == (1, 60, 4)


def batch_fields(batch: Batch) -> list[object]:
    return [batch.ids_BL.tolist(), batch.labels_BL.tolist(), batch.revise_BL.tolist()]


def test_a_sample_is_collated_the_same_alone_and_in_a_batch() -> None:
    samples = [RENDERER(parse_row(ROWS[n], n)) for n in ("two_turns", "text_only", "pair_one")]
    rows = [5, 0, 9]
    together = batch_fields(collate(samples, rows, pad_id=0))
    for i, sample in enumerate(samples):
        alone = batch_fields(collate([sample], rows[i : i + 1], pad_id=0))
        for whole, single in zip(together, alone, strict=True):
            assert whole[i][: len(single[0])] == single[0]  # type: ignore[index]


def vicrit(**changes: object) -> dict[str, object]:
    return {
        "image_path": "a/b.jpg",
        "problem": "Find the error.",
        "original_caption": "The sky is black and red near the river. ",
        "changed_caption": "The sky is clear and blue near the river. ",
        "solution_original": "black and red",
        "solution_target": "clear and blue",
        **changes,
    }


def test_vicrit_rows_become_corrections() -> None:
    report = Report()
    rows = list(prepare_vicrit([("v.jsonl:1", vicrit())], TOKENIZER, report))
    sample = RENDERER(parse_row(rows[0], "out:1"))
    assert report.summary() == "no problems"
    assert flagged(sample) == (" clear and blue", " black and red")
    assert parse_row(rows[0], "out:1").image == "a/b.jpg"


def test_vicrit_rows_that_cannot_be_used_are_counted() -> None:
    same = vicrit()["changed_caption"]
    bad = [
        ("v:1", vicrit(original_caption=same)),
        ("v:2", vicrit(original_caption="The sky is very dark black and red near the river.")),
        ("v:3", vicrit(changed_caption=None)),
        ("v:4", vicrit(image_path=" ")),
        ("v:5", []),
        ("v:6", vicrit(original_caption=f"<image> {same}")),
        ("v:7", vicrit()),
    ]
    report = Report()
    assert len(list(prepare_vicrit(bad, TOKENIZER, report))) == 1
    assert report.counts == {"identical": 1, "unequal": 1, "malformed": 4}
    assert [problem.where for problem in report.problems] == [f"v:{row}" for row in range(1, 7)]


@given(st.lists(st.sampled_from(WORDS), max_size=8), st.lists(st.sampled_from(WORDS), max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_difference_turns_one_caption_into_the_other(one: list[str], other: list[str]) -> None:
    wrong, right = " ".join(one), " ".join(other)
    start, end, target = difference(wrong, right)
    assert 0 <= start <= end <= len(wrong)
    assert wrong[:start] + target + wrong[end:] == right
    for text, places in ((wrong, (start, end)), (right, (start, start + len(target)))):
        for at in places:
            assert not (0 < at < len(text) and text[at - 1 : at + 1].isalnum())


def test_the_difference_is_of_whole_words() -> None:
    start, end, target = difference("two dogs here", "two docks here")
    assert ("two dogs here"[start:end], target) == ("dogs", "docks")


def test_a_report_counts_once_and_keeps_a_limited_number() -> None:
    report = Report(limit=2)
    for line in (1, 2, 3, 3):
        report.extend([Problem("image", f"a:{line}", "broken")])
    assert report.summary() == "3 image"
    assert report.to_json() == {
        "counts": {"image": 3},
        "problems": [
            {"kind": "image", "where": "a:1", "reason": "broken"},
            {"kind": "image", "where": "a:2", "reason": "broken"},
        ],
    }
    assert str(report.problems[0]) == "a:1: image: broken"
