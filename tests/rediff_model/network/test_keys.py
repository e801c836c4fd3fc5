"""Keys as they are found in files and variables."""

from __future__ import annotations

import pytest

from rediff_model.network.keys import KeyTextError, clean_key


@pytest.mark.parametrize(
    "text", ["sk-1", "sk-1\n", "sk-1\r\n", "\r\n sk-1 \t\r\n", "\ufeffsk-1", " \ufeff sk-1\ufeff\n"]
)
def test_what_stands_around_a_key_is_dropped(text: str) -> None:
    assert clean_key(text) == "sk-1"


@pytest.mark.parametrize("text", ["", " ", "\r\n", "\ufeff\n"])
def test_nothing_is_no_key(text: str) -> None:
    assert clean_key(text) == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "\u201csk-secret\u201d",
            r"character 1 of .* is U\+201C \(LEFT DOUBLE QUOTATION MARK\)",
        ),
        ("sk secret", r"character 3 of the key is U\+0020 \(SPACE\)"),
        ("sk\nsecret", r"character 3 of the key is U\+000A,"),
        (
            "schl\xfcssel",
            r"character 5 of .* U\+00FC \(LATIN SMALL LETTER U WITH D",
        ),
        ("sk\udcff", r"character 3 of the key is U\+DCFF,"),
        ("sk\x7f", r"character 3 of the key is U\+007F,"),
    ],
)
def test_a_wrong_character_is_named_and_the_key_is_not(text: str, named: str) -> None:
    with pytest.raises(KeyTextError, match=named) as error:
        clean_key(text)
    assert "secret" not in str(error.value)
    assert str(error.value).isascii()
