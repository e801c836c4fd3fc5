"""The examples of docs/api.md run as written, against a server on another port."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server_fakes import DEFAULT_CAPTION, png
from server_wire import serving

from rediff_model.chat_template import DEFAULT_QUESTION
from server.api import openai_body, schemas
from server.engine.model_runner import SamplerRunner
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```(sh|python|js)\n(.*?)^```$", TEXT, re.M | re.S)
WRITTEN_FOR = "http://127.0.0.1:8000"
PROGRAMS = {"sh": "curl", "python": sys.executable, "js": "node"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(api_keys=["example-key", "none"], metrics_public=True) as address:
        yield f"http://{address}"


@pytest.fixture(scope="module")
def open_server() -> Iterator[str]:
    with serving() as address:
        yield f"http://{address}"


@pytest.fixture(scope="module")
def model_server() -> Iterator[str]:
    """Of the embedded model: templates are filled in tokens of its own."""
    config = Settings.read({"model": "embedded", "threads": 1}).engine()
    with serving(lambda: SamplerRunner.load(config)) as address:
        yield f"http://{address}"


def run(kind: str, code: str, address: str, folder: Path) -> str:
    if shutil.which(PROGRAMS[kind]) is None:
        pytest.skip(f"{PROGRAMS[kind]} is not installed")
    assert WRITTEN_FOR in code
    (folder / "scene.png").write_bytes(png(64, 48))
    file = folder / f"example.{'mjs' if kind == 'js' else kind}"
    file.write_text(code.replace(WRITTEN_FOR, address), encoding="utf-8")
    command = {"sh": ["bash", "-euo", "pipefail"], "python": [sys.executable], "js": ["node"]}[kind]
    done = subprocess.run(
        [*command, str(file)],
        cwd=folder,
        env=os.environ | {"KEY": "example-key", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("kind", "code"), EXAMPLES, ids=[f"{kind}-{n}" for n, (kind, _) in enumerate(EXAMPLES)]
)
def test_an_example_runs_as_written(
    kind: str, code: str, open_server: str, server: str, model_server: str, tmp_path: Path
) -> None:
    if "template=" in code:
        answer = json.loads(run(kind, code, model_server, tmp_path))
        colour = answer["holes"][1]
        assert answer["caption"].startswith("A picture of ")
        assert answer["caption"].endswith(f". The backdrop is {colour['text']}.")
        assert colour["choices"].keys() == {"plain", "striped", "dotted"}
        return
    keyed = "$KEY" in code
    output = run(kind, code, server if keyed else open_server, tmp_path)
    if keyed:
        assert '"fake"' in output
    elif DEFAULT_QUESTION in code:
        assert output.strip() == DEFAULT_QUESTION
    else:
        assert DEFAULT_CAPTION in output


def test_there_is_an_example_of_every_kind() -> None:
    assert {kind for kind, _ in EXAMPLES} == set(PROGRAMS)
    assert sum("from openai" in code for _, code in EXAMPLES) == 2


def test_every_field_is_told() -> None:
    bodies = (
        schemas.RefineBody,
        schemas.SamplingOptions,
        openai_body.ChatBody,
        schemas.CaptionAnswer,
    )
    for body in bodies:
        for name in body.model_fields:
            if name not in ("messages",):
                assert f"`{name}`" in TEXT or f"`{name}" in TEXT, name
