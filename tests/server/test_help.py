"""The help of every command, and what its environment variables are called."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from server.commands.app import app
from server.commands.command import Command
from server.commands.options import Split
from training.stickers.sample import STREAMS

if TYPE_CHECKING:
    from collections.abc import Iterator


def commands(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it."""
    below = getattr(command, "commands", None)
    if below is None:
        yield names, command
        return
    for name, inner in below.items():
        yield from commands(inner, *names, name)


COMMANDS = dict(commands(typer.main.get_command(app)))
OWN = {names: command for names, command in COMMANDS.items() if names[0] != "bench"}


def help_of(*names: str) -> str:
    """The help at 80 columns."""
    result = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "80"}, color=False)
    assert result.exit_code == 0
    return result.output


def test_there_are_commands() -> None:
    assert {("caption",), ("serve",), ("train", "stage2"), ("data", "scenes")} < set(OWN)
    assert all(isinstance(command, Command) for command in COMMANDS.values())


def test_no_variable_has_two_meanings() -> None:
    meanings = defaultdict(set)
    for names, command in COMMANDS.items():
        for option in command.params:
            if option.param_type_name == "option":
                assert (option.envvar or "REDIFF_").startswith("REDIFF_"), names
                kind = str(option.type_descriptor.annotation)
                meanings[option.envvar].add((*option.opts, kind, option.help))
    meanings.pop(None)
    assert len(meanings) > 100
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}


@pytest.mark.parametrize("names", OWN, ids=" ".join)
def test_every_option_is_in_a_group_with_a_sentence_of_help(names: tuple[str, ...]) -> None:
    for option in OWN[names].params:
        assert option.help, option.name
        assert option.help[0].isupper() or option.help.startswith(("auto", "rediff", "t", "s", "d"))
        if option.param_type_name == "option":
            assert option.help.endswith("."), option.help
            assert option.rich_help_panel, option.name


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help_fits_80_columns(names: tuple[str, ...]) -> None:
    if names[0] != "bench":
        assert max(map(len, help_of(*names).splitlines())) <= 80


def test_help_is_grouped_and_tells_the_variables() -> None:
    shown = help_of("caption")
    titles = [line for line in shown.splitlines() if line[:1].strip() and line.endswith(":")]
    assert titles == [
        "Arguments:",
        "Inputs:",
        "Outputs:",
        "Prompt and wording:",
        "Sampling:",
        "Model:",
        "Batching:",
        "Limits:",
        "Captions from a server:",
        "Captions from a Ray cluster:",
        "Other options:",
    ]
    assert shown.endswith(
        "Options can also be set by environment variables: --list is REDIFF_LIST.\n"
    )
    words = " ".join(help_of("serve").split())
    assert "[REDIFF_API_KEYS]" in words
    assert "Graceful shutdown timeout in seconds. [default: 30.0]" in words
    words = " ".join(help_of("evaluate").split())
    assert "under Model, --model is REDIFF_MODEL" in words
    assert "--split is REDIFF_EVALUATE_SPLIT." in words


def test_the_splits_of_the_help_are_those_of_the_scenes() -> None:
    assert get_args(Split) == tuple(STREAMS)
