"""The Dockerfile's stages, as `scripts.replay_dockerfile` reads them, and what they promise."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from scripts.dockerfile import Stage, expand, parse

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return {stage.name: stage for stage in parse(text, {})}


def chain(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it is built on."""
    found = [stages[name]]
    while found[-1].image in stages:
        found.append(stages[found[-1].image])
    return found


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_last_layer_serves_as_somebody_and_builds_nothing(
    stages: dict[str, Stage], target: str
) -> None:
    steps = [step for stage in chain(stages, target) for step in stage.steps]
    said = {step.name: step.value for step in steps}
    assert said["USER"] == "10001"
    assert "/health/ready" in said["HEALTHCHECK"]
    assert said["VOLUME"] == "/models"
    runs = " ".join(step.value for step in steps if step.name == "RUN")
    assert "useradd" in runs
    assert not {"pip", "apt-get", "gcc"} & set(shlex.split(runs))


def test_what_is_copied_is_there(stages: dict[str, Stage]) -> None:
    copies = [(one, step) for one in stages.values() for step in one.steps if step.name == "COPY"]
    assert len(copies) > 8
    for stage, step in copies:
        flags = [word for word in step.value.split() if word.startswith("--")]
        *sources, _ = [word for word in step.value.split() if not word.startswith("--")]
        origin = [flag.removeprefix("--from=") for flag in flags if flag.startswith("--from=")]
        if origin:
            assert list(stages).index(origin[0]) < list(stages).index(stage.name)
        else:
            assert all((ROOT / source).exists() for source in sources), step


def test_lines_are_joined_and_comments_and_arguments_are_not_steps() -> None:
    text = (
        "ARG V=1\nFROM a:${V} AS x\n# no step\nRUN one \\\n# nor this\n && two\n\nFROM x\nCMD []\n"
    )
    first, second = parse(text, {})
    assert (first.image, first.name, second.image, second.name) == ("a:1", "x", "x", "x")
    assert [(step.name, step.value.split()) for step in first.steps] == [
        ("RUN", ["one", "&&", "two"])
    ]
    assert parse(text, {"V": "2"})[0].image == "a:2"
    assert expand("$A-${A}-$B", {"A": "1"}) == "1-1-"
