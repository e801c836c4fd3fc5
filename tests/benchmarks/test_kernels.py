"""The benchmark of the kernels without a GPU: it starts itself again for the interpreter."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch

from benchmarks import kernels


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run as they are")
def test_the_interpreter_gets_the_options_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.delenv(kernels.INTERPRET, raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="3"):
        kernels.main(["--json", "figures.json"])
    assert commands[0][-2:] == ["--json", "figures.json"]
