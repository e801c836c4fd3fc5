"""A system test that is skipped fails with CI=true, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SKIPPED = """
import pytest

@pytest.fixture
def tool():
    pytest.skip("no such tool")

@pytest.mark.system
def test_by_a_fixture(tool): ...

@pytest.mark.system
@pytest.mark.skipif(True, reason="no such tool")
def test_by_a_mark(): ...

def test_that_is_no_system_test(tool): ...
"""


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", ("1 skipped", "2 errors")), ("", ("3 skipped",))]
)
def test_a_skipped_system_test_fails_in_ci(
    ci: str, outcome: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "pytest.ini"]
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    system: needs a tool\n")
    done = subprocess.run(
        [*command, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = done.stdout.splitlines()[-1]
    assert all(word in summary for word in outcome), done.stdout + done.stderr
    assert done.returncode == (1 if ci else 0)
