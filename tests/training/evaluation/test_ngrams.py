"""BLEU, ROUGE-L and CIDEr-D on sentences that were worked out by hand."""

from __future__ import annotations

import math

import pytest

from training.evaluation.ngrams import bleu, bleu_counts, cider_d, rouge_l, tokens


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A T-shirt, blue; it's 1,000.5 cm!", "a t-shirt blue it 's 1,000.5 cm"),
        ("Don\u2019t (stop) \u2014 red,green", "do n't stop red green"),
        ("Zwei S\u00e4ugetiere: \u732b", "zwei s\u00e4ugetiere \u732b"),
        (" ...\n", ""),
    ],
)
def test_tokens_are_words_without_punctuation(text: str, expected: str) -> None:
    assert tokens(text) == words(expected)


def test_bleu_of_a_clipped_and_short_caption() -> None:
    # "the" counts twice at most; the closest reference has 7 words, the caption 6.
    counts = bleu_counts(
        words("the the the cat sat down"),
        [words("the cat sat on the mat today"), words("a cat sat")],
    )
    assert counts.tolist() == [4, 2, 1, 0, 6, 5, 4, 3, 6, 7]
    short = math.exp(1 - 7 / 6)
    scores = bleu(counts)
    assert scores[0] == pytest.approx(4 / 6 * short)
    assert scores[1] == pytest.approx(math.sqrt(4 / 6 * 2 / 5) * short)
    assert scores[2] == pytest.approx((4 / 6 * 2 / 5 * 1 / 4) ** (1 / 3) * short)
    assert scores[3] == pytest.approx(0, abs=1e-3)


def test_of_two_references_as_close_the_shorter_counts() -> None:
    counts = bleu_counts(words("a b c"), [words("a b c d"), words("a b")])
    assert counts[-1] == 2
    # Longer than the reference: no penalty.
    assert bleu(counts)[0] == pytest.approx(1)


def test_rouge_takes_the_best_precision_and_the_best_recall() -> None:
    # Common: 3 of 4 words (a b d) with the first, 2 (c d) with the second.
    score = rouge_l(words("a b c d"), [words("a b x d e f"), words("c d")])
    precision, recall = 3 / 4, 1.0
    assert score == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    assert rouge_l((), [words("a")]) == 0
    assert rouge_l(words("a"), [words("b")]) == 0


def test_cider_of_equal_captions_is_ten_and_of_shared_words_nothing() -> None:
    captions = [words("a red cat sits"), words("a blue dog runs")]
    assert cider_d(captions, [[one] for one in captions]) == pytest.approx([10, 10])
    # "a" is in both pictures' references and weighs nothing.
    assert cider_d([words("a"), words("a")], [[one] for one in captions]) == [0, 0]
    assert cider_d(captions[:1], [captions[:1]]) == [0]


def test_cider_by_hand() -> None:
    references = [[words("red cat")], [words("blue dog")]]
    # Of the unigrams "red" alone is shared, of the bigrams nothing; both have one bigram.
    own, _ = cider_d([words("red dog"), words("blue dog")], references)
    assert own == pytest.approx(10 / 4 * 1 / 2)
    # Three bigrams more: exp(-9 / 72), and each of "red" and "red red red red" counts once in min.
    longer, _ = cider_d([words("red red red red cat"), words("blue dog")], references)
    log2 = math.log(2)
    unigrams = (log2 * log2 + log2 * log2) / (math.sqrt(17) * log2 * math.sqrt(2) * log2)
    bigrams = 1 / math.sqrt(9 + 1)
    # "red red" is in no reference: its document frequency counts as one.
    assert longer == pytest.approx(10 / 4 * math.exp(-9 / 72) * (unigrams + bigrams))
