"""Read a Dockerfile: its stages and their instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction, such as RUN, and what stands behind it."""

    name: str
    value: str


@dataclass(slots=True)
class Stage:
    """FROM to the next FROM."""

    image: str
    name: str
    steps: list[Step] = field(default_factory=list)


def parse(text: str, arguments: Mapping[str, str]) -> list[Stage]:
    """The stages; `arguments` are values for ARG lines before the first one."""
    known: dict[str, str] = {}
    stages: list[Stage] = []
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            words = expand(value, known).split()
            stages.append(Stage(words[0], words[-1]))
        elif name and stages:
            stages[-1].steps.append(Step(name, value.strip()))
        elif name == "ARG":
            key, _, default = value.partition("=")
            known[key] = arguments.get(key, default)
    return stages


def expand(text: str, variables: Mapping[str, str]) -> str:
    """The text with values for `$NAME` and `${NAME}`; nothing for names that are not known."""
    return VARIABLE.sub(lambda found: variables.get(found[1] or found[2], ""), text)
