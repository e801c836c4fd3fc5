"""The runs of foreign load generators: their command lines, and what is said when one fails."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from server_wire import serving

from benchmarks import foreign

if TYPE_CHECKING:
    from pathlib import Path

VLLM_REPORT = {"completed": 2}
GUIDELLM_REPORT = {
    "benchmarks": [{"metrics": {"request_totals": {"successful": 2}}, "requests": {"all": [1, 2]}}]
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with environments that look made; their programs write down how they were called."""
    monkeypatch.delenv("TORCH", raising=False)
    for name, tool in foreign.TOOLS.items():
        folder = tmp_path / f"env-{name}"
        (folder / "bin").mkdir(parents=True)
        wanted = (foreign.TORCH, *tool.requirements, *tool.bare)
        (folder / "installed.txt").write_text("\n".join(wanted), encoding="utf-8")
        program(folder / "bin" / name, "pass")
    return tmp_path


def program(path: Path, action: str) -> None:
    calls = path.with_name("calls.jsonl")
    lines = (
        f"#!{sys.executable}",
        "import json, pathlib, sys",
        f"with open({str(calls)!r}, 'a') as file: file.write(json.dumps(sys.argv[1:]) + chr(10))",
        action,
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)


def run(work: Path, tool: str, address: str, *levels: str) -> list[list[str]]:
    where = ("--base-url", f"http://{address}", "--work", str(work), "--out", str(work / "out"))
    foreign.main([tool, *where, "--pictures", "2", "--concurrency", *levels])
    calls = (work / f"env-{tool}" / "bin" / "calls.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in calls.splitlines()]


def test_vllm_is_run_once_a_level(work: Path) -> None:
    folder = "pathlib.Path(sys.argv[sys.argv.index('--result-dir') + 1])"
    name = "sys.argv[sys.argv.index('--result-filename') + 1]"
    action = f"({folder} / {name}).write_text({json.dumps(VLLM_REPORT)!r})"
    program(work / "env-vllm" / "bin" / "vllm", action)
    with serving() as address:
        calls = run(work, "vllm", address, "1", "8")
    assert [call[call.index("--max-concurrency") + 1] for call in calls] == ["1", "8"]
    assert all(call[call.index("--base-url") + 1] == f"http://{address}" for call in calls)
    assert sorted(path.name for path in (work / "out").iterdir()) == ["vllm-1.json", "vllm-8.json"]
    rows = (work / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2
    for row in map(json.loads, rows):
        assert row["image"].startswith("data:image/png;base64,")
        assert row["image_files"] == [row["image"]]


def test_guidellm_is_run_once_for_all_levels(work: Path) -> None:
    target = "[word for word in sys.argv if 'kind=json,path=' in word][0].rpartition('=')[2]"
    action = f"pathlib.Path({target}).write_text({json.dumps(GUIDELLM_REPORT)!r})"
    program(work / "env-guidellm" / "bin" / "guidellm", action)
    with serving() as address:
        (call,) = run(work, "guidellm", address, "1", "8")
    assert "kind=concurrent,streams[0]=1,streams[1]=8" in call
    assert f"kind=openai_http,target=http://{address}" in call
    (kept,) = json.loads((work / "out" / "guidellm.json").read_text(encoding="utf-8"))["benchmarks"]
    assert kept.keys() == {"metrics"}


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("sys.exit(3)", "ended with 3"),
        ("pass", "wrote no report"),
        ("pathlib.Path('REPORT').write_text('{\"completed\": 1}')", "only 1 of 2 requests"),
    ],
)
def test_a_failure_is_told_in_one_line(work: Path, action: str, message: str) -> None:
    action = action.replace("REPORT", str(work / "out" / "vllm-1.json"))
    program(work / "env-vllm" / "bin" / "vllm", action)
    with serving() as address, pytest.raises(SystemExit, match=message) as raised:
        run(work, "vllm", address, "1")
    assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there_is_told_in_one_line(work: Path) -> None:
    with pytest.raises(SystemExit, match=r"no server is ready at http://127\.0\.0\.1:9"):
        run(work, "vllm", "127.0.0.1:9", "1")


def test_a_program_that_is_not_there_is_named(work: Path) -> None:
    (work / "env-vllm" / "bin" / "vllm").unlink()
    with serving() as address, pytest.raises(SystemExit, match=r"there is no program .*bin/vllm"):
        run(work, "vllm", address, "1")
