"""The steps of the Dockerfile, and what its last stages hold."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from server_wire import serving

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction, such as RUN, and its value."""

    name: str
    value: str


@dataclass(slots=True)
class Stage:
    """FROM to the next FROM."""

    image: str
    name: str
    steps: list[Step] = field(default_factory=list)


def parse(text: str) -> list[Stage]:
    """The stages with their instructions; continued lines are joined."""
    stages: list[Stage] = []
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            image, _, stage = value.split()
            stages.append(Stage(image, stage))
        elif name and stages:
            stages[-1].steps.append(Step(name, value.strip()))
    return stages


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return {stage.name: stage for stage in parse(text)}


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


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_health_check_asks_without_a_proxy(stages: dict[str, Stage], target: str) -> None:
    steps = [step for stage in chain(stages, target) for step in stage.steps]
    (check,) = [step.value for step in steps if step.name == "HEALTHCHECK"]
    assert "--start-period=2h" in check
    _, *arguments = json.loads(check[check.index("[") :])
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | proxies
    with serving() as address:
        port = {"REDIFF_PORT": address.rpartition(":")[2]}
        subprocess.run([sys.executable, *arguments], env=environment | port, check=True)
    done = subprocess.run(
        [sys.executable, *arguments], env=environment | port, check=False, capture_output=True
    )
    assert done.returncode != 0


def test_compose_passes_keys_model_and_token() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    service = compose["services"]["rediff"]
    assert service["build"]["target"] == "cpu"
    passed = {name for name, value in service["environment"].items() if value is None}
    assert passed == {"REDIFF_API_KEYS", "REDIFF_MODEL", "REDIFF_REVISION", "HF_TOKEN"}


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
