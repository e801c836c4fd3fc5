"""Where a caption that was cut off ends."""

from __future__ import annotations

import pytest

from server.bulk.wording import Wording, full_sentences


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("Two birds sit. A red one fl", "Two birds sit."),
        ("Two birds sit.", "Two birds sit."),
        ("Two birds sit.  ", "Two birds sit."),
        ("Is it red? No! It is", "Is it red? No!"),
        ('It says "stop." Then a', 'It says "stop."'),
        ("It costs 3.50 here. A", "It costs 3.50 here."),
        ("It is 3.5", "It is 3.5"),
        ("One bird. Mr. Smith and Dr. Wu", "One bird."),
        ("One bird. J. Smith", "One bird."),
        ("One bird. It has e.g. a", "One bird."),
        ("One bird... and", "One bird... and"),
        ("One bird… It", "One bird…"),
        ("Two (red.) And", "Two (red.)"),
        ("鳥が二羽。赤い", "鳥が二羽。"),
        ("Ein Vogel. Äpfel", "Ein Vogel."),
        ("Line one.\nLine tw", "Line one."),
        ("no sentence at all", "no sentence at all"),
        ("", ""),
    ],
)
def test_the_last_full_sentence(text: str, full: str) -> None:
    assert full_sentences(text) == full


def test_only_captions_that_were_cut_off_are_shortened() -> None:
    wording = Wording(append="!", trigger="TOK", full_sentences=True)
    assert wording.around("One. Two", "length") == "TOK, One.!"
    assert wording.around("One. Two", "stop") == "TOK, One. Two!"
    assert Wording().around("One. Two", "length") == "One. Two"
