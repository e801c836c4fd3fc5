"""Captions of scenes: what they say, in which order, in how many ways; and reading them back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_samples import HAND_SCENE, NAMES, random_scene, sticker

from training.stickers.grammar import compose, true_relations
from training.stickers.graph import Scene
from training.stickers.parse import (
    AttributeFact,
    BackdropFact,
    CountFact,
    ObjectFact,
    PatternFact,
    RelationFact,
    parse,
)
from training.stickers.templates import (
    OPENINGS,
    RELATIONS,
    SIZED_OPENINGS,
    STICKERS,
    SURFACES,
    article,
)

SEEDS = st.integers(0, 2**32 - 1)


def captions(count: int) -> list[str]:
    return [compose(random_scene(i), np.random.default_rng(i)).text for i in range(count)]


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_spans_hold_the_scene_in_order(seed: int) -> None:
    scene = random_scene(seed)
    caption = compose(scene, np.random.default_rng(seed))
    ends = [0, *(span.end for span in caption.spans)]
    for end, span in zip(ends, caption.spans, strict=False):
        assert end <= span.start < span.end <= len(caption.text)
        phrase = caption.text[span.start : span.end]
        owner = scene.stickers[span.sticker] if span.sticker >= 0 else None
        if owner is None:
            assert span.slot in ("count", "backdrop", "pattern")
        elif span.slot in ("name", "subject", "object"):
            assert phrase == owner.name
        elif span.slot == "position":
            cell = "{} {}".format(*owner.cell)
            assert any(full[7:] == phrase for full in SURFACES["position"][cell])
        elif span.slot != "relation":
            assert phrase in SURFACES[span.slot][getattr(owner, span.slot)]
    named = [span.sticker for span in caption.spans if span.slot == "name"]
    assert named == list(range(len(scene.stickers)))
    assert sum(span.slot == "relation" for span in caption.spans) == scene.relations_expected


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_relations_are_true_and_of_different_pairs(seed: int) -> None:
    scene = random_scene(seed)
    order = [each.name for each in scene.stickers]
    pairs = []
    for sentence in parse(compose(scene, np.random.default_rng(seed)).text, NAMES):
        for fact in sentence.facts or ():
            if isinstance(fact, RelationFact):
                subject, object_ = order.index(fact.subject), order.index(fact.object)
                assert scene.holds(subject, fact.kind, object_)
                pairs.append(frozenset((subject, object_)))
    assert len(set(pairs)) == len(pairs) == scene.relations_expected


def test_one_pair_gives_both_its_relations_when_no_other_holds() -> None:
    near = [sticker(name, "red", "round", "small", 100, 100) for name in ("fox", "apple", "owl")]
    far = sticker("key", "red", "round", "small", 130, 150)
    scene = Scene(0, "white", "plain", (*near[:3], far))
    assert {relation[1] for relation in true_relations(scene)} == {"above"}
    text = compose(scene, np.random.default_rng(0)).text
    relations = [s for s in parse(text, NAMES) if s.kind == "relation"]
    assert len(relations) == 2


def test_stickers_on_one_spot_have_no_relation_to_state() -> None:
    pair = tuple(sticker(name, "red", "round", "small", 100, 100) for name in ("fox", "apple"))
    text = compose(Scene(0, "white", "plain", pair), np.random.default_rng(0)).text
    assert [s.kind for s in parse(text, NAMES)][-1] == "sticker"


def test_the_same_generator_writes_the_same_caption_and_others_do_not() -> None:
    written = [compose(HAND_SCENE, np.random.default_rng(seed)).text for seed in (1, 1, 2, 3)]
    assert written[0] == written[1]
    assert len(set(written)) == 3


def test_captions_are_long_enough_on_average() -> None:
    words = [
        len(compose(random_scene(i, 2 + i % 4), np.random.default_rng(i)).text.split())
        for i in range(400)
    ]
    assert np.mean(words) >= 48


def test_enough_templates_of_different_order() -> None:
    orders = {tuple(p for p in each.lower().split() if "{" in p) for each in STICKERS}
    assert len(orders) == len(STICKERS) >= 7
    assert len(RELATIONS) >= 4
    assert all(len(phrases) >= 2 for phrases in SURFACES["position"].values())


def test_every_template_and_phrase_is_used() -> None:
    text = "\n".join(captions(800))
    sources = [*STICKERS, *RELATIONS, *(s for each in (*OPENINGS, *SIZED_OPENINGS) for s in each)]
    for source in sources:
        fixed = max(source.replace("]", "}").replace("[", "{").split("}"), key=len)
        assert fixed.split("{")[0] in text, source
    for form in ("relation", "side", "comparison", "position", "colour", "backdrop"):
        for phrases in SURFACES[form].values():
            assert all(phrase in text for phrase in phrases), form


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("apple", "an"),
        ("umbrella", "an"),
        ("unicorn", "a"),
        ("ukulele", "a"),
        ("hourglass", "an"),
        ("horse", "a"),
        ("x-ray", "an"),
        ("oval", "an"),
        ("ice cream", "an"),
        ("8 ball", "an"),
        ("one-man band", "a"),
        ("Eiffel tower", "an"),
    ],
)
def test_article(phrase: str, expected: str) -> None:
    assert article(phrase) == expected


def test_numbers_agree() -> None:
    one_large = Scene(
        0,
        "white",
        "plain",
        (HAND_SCENE.stickers[0], HAND_SCENE.stickers[1], HAND_SCENE.stickers[2]),
    )
    openings = {compose(one_large, np.random.default_rng(i)).text.split(".")[0] for i in range(200)}
    sized = "One large sticker and two small stickers lie on a plain white backdrop"
    assert sized in openings
    assert "Of the three stickers on a plain white backdrop, one is large" in openings
    assert "Of the three stickers on a plain white backdrop, two are small" in openings


def test_parse_states_what_the_sentences_say() -> None:
    sentences = parse(
        "Two large stickers and one small sticker lie on a plain sky blue backdrop. "
        "On the left, an oval red plate shows a small hot air balloon. "
        "The fox has the apple to its left.",
        NAMES,
    )
    assert [s.kind for s in sentences] == ["opening", "sticker", "relation"]
    assert sentences[0].facts == (
        CountFact("large", 2),
        CountFact("small", 1),
        BackdropFact("sky blue"),
        PatternFact("plain"),
    )
    assert sentences[1].facts == (
        ObjectFact("hot air balloon"),
        AttributeFact("hot air balloon", "size", "small"),
        AttributeFact("hot air balloon", "colour", "red"),
        AttributeFact("hot air balloon", "shape", "oval"),
        AttributeFact("hot air balloon", "position", "1 0"),
    )
    assert sentences[2].facts == (RelationFact("apple", "left of", "fox"),)
    assert [s.mentions for s in sentences] == [(), ("hot air balloon",), ("apple", "fox")]


def test_both_words_for_a_place_are_the_same_place() -> None:
    for cell, phrases in SURFACES["position"].items():
        for phrase in phrases:
            (sentence,) = parse(f"A small fox sits on a red round plate {phrase}.", NAMES)
            assert AttributeFact("fox", "position", cell) in (sentence.facts or ())


@pytest.mark.parametrize(
    "text",
    [
        "A apple at the top has a small round plate in red.",
        "An fox at the top has a small round plate in red.",
        "A fox at the top has an small round plate in red.",
        "a fox at the top has a small round plate in red.",
        "A fox at the top has a small round plate in red",
        "A fox at the top has a small round plate in red .",
        "A fox  at the top has a small round plate in red.",
        "A fox at the top has a round small plate in red.",
        "A fox at the top has a small star plate in red.",
        "A fox at the top has a small round plate in mauve.",
        "There is four stickers.",
        "There are one stickers.",
        "There are four sticker.",
        "Of the four stickers on a plain white backdrop, one are large.",
        "Of the four stickers on a plain white backdrop, two is small.",
        "One large stickers and one small sticker lie on a plain white backdrop.",
        "The fox are left of the apple.",
        "the fox is left of the apple.",
        "The fox is left the apple.",
        "The fox lies further left of the apple.",
        "Above the apple are the fox.",
        ".",
    ],
)
def test_parse_refuses(text: str) -> None:
    (sentence,) = parse(text, NAMES)
    assert sentence.kind is None
    assert sentence.facts is None


def test_sentences_stand_one_space_apart() -> None:
    fine = "The fox is above the apple."
    for between, fluent in ((" ", True), ("", False), ("  ", False), ("\n", False)):
        first, second = parse(f"{fine}{between}{fine}", NAMES)
        assert first.facts is not None
        assert (second.facts is not None) == fluent
    assert len(parse(f"  {fine}\n", NAMES)) == 1


def test_a_refused_sentence_still_mentions_names() -> None:
    (sentence,) = parse("Fire engine a a hot air balloon pear-shaped keyhole Fox", NAMES)
    assert sentence.mentions == ("fire engine", "hot air balloon", "fox")


@pytest.mark.parametrize("name", ["red", "white", "", "sea.horse", "fox ", "café"])
def test_names_that_cannot_be_read_back_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="class name"):
        parse("", ("fox", name))


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_parse_takes_any_text(text: str) -> None:
    assert all(sentence.facts is None for sentence in parse(text, NAMES))


def test_parse_knows_no_object_without_names() -> None:
    (sentence,) = parse("The fox is above the apple.", ())
    assert (sentence.facts, sentence.mentions) == (None, ())
