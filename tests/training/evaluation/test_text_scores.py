"""Figures of captions without a judge."""

from __future__ import annotations

import pytest

from training.evaluation.text_scores import reference_figures, text_figures


def test_faults_of_a_text() -> None:
    figures = text_figures(
        [
            "a cat and a cat",  # 5 words; 2 of 5 words and 1 of 4 pairs were there before.
            "the the dog",
            " ",
            "A dog.<|eot_id|>",  # "eot" and "id" are words.
        ]
    )
    means = {name: one.mean for name, one in figures.items()}
    assert means["words"] == pytest.approx((5 + 3 + 0 + 4) / 4)
    assert means["empty"] == means["leaking"] == means["doubled"] == 1 / 4
    assert means["repeated_1"] == pytest.approx((2 / 5 + 1 / 3) / 4)
    assert means["repeated_2"] == pytest.approx(1 / 4 / 4)
    assert means["repeated_3"] == means["repeated_4"] == 0
    assert all(one.low <= one.mean <= one.high for one in figures.values())


@pytest.mark.parametrize("text", ["<|mdm_mask|> cat", "a [MASK]", "</s>", "a cat <image>"])
def test_special_tokens_leak(text: str) -> None:
    assert text_figures([text])["leaking"].mean == 1


@pytest.mark.parametrize("text", ["a < b | c > d", "[a mask]", "a man with a mask"])
def test_other_marks_do_not(text: str) -> None:
    assert text_figures([text])["leaking"].mean == 0


def test_a_picture_without_a_caption_counts_as_an_empty_one() -> None:
    references = {"1": ["a red cat sits there"], "2": ["a blue dog runs fast", "a dog"]}
    whole = reference_figures(
        {"1": "A red cat sits there.", "2": "a blue dog runs fast"}, references
    )
    assert whole["bleu_4"].mean == pytest.approx(1)
    assert whole["rouge_l"].mean == 1
    assert whole["cider_d"].mean == pytest.approx((10 + 10 / 2) / 2, abs=0.5)
    half = reference_figures({"1": "A red cat sits there."}, references)
    assert half["rouge_l"].mean == 0.5
    assert half["bleu_1"].mean < 1


def test_references_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"x\.png has no reference"):
        reference_figures({"x.png": "a"}, {"x.png": []})
