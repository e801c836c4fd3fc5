"""The commands of docs/quickstart.md run as written, one block after another."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playground_page import serving

TEXT = (Path(__file__).parents[1] / "docs" / "quickstart.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)
WRITTEN_FOR = "http://127.0.0.1:8000"
KINDS = ("caption", "stream", "folder", "file", "settings", "refine", "doctor")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    with serving() as address:
        said = dict(zip(KINDS, (run(block, address, tmp_path) for block in BLOCKS), strict=True))
    answer = json.loads(said["caption"])
    assert answer["finish_reason"] == "stop"
    steps = said["stream"].strip().split("\n\n")
    assert 10 < len(steps) <= 32
    assert ("▒" in steps[0], "▒" in steps[-1]) == (True, False)
    texts = sorted((tmp_path / "scenes").glob("*.txt"))
    assert len(texts) == 10
    assert said["folder"].strip() == answer["caption"] == texts[0].read_text().strip()
    rows = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert [said["file"].strip(), len(rows)] == [rows[0], 10]
    one, adaptive = (
        json.loads(part) for part in said["settings"].replace("}{", "}\n{").split("\n")
    )
    assert one["steps"] > answer["steps"] > adaptive["steps"]
    assert '"words"' in said["refine"]
    assert "WRONG" not in said["doctor"]


def test_there_is_a_block_of_every_kind() -> None:
    assert len(BLOCKS) == len(KINDS)
    assert sum(WRITTEN_FOR in block for block in BLOCKS) == 5


def run(block: str, address: str, folder: Path) -> str:
    """What a block prints; it must not fail, and no answer may be an error."""
    code = block.replace(WRITTEN_FOR, address.rstrip("/"))
    command = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout
    return done.stdout
