"""Load generators of other projects, unmodified, on our server: `vllm bench serve` and guidellm.

    python -m benchmarks.foreign vllm
    python -m benchmarks.foreign guidellm --concurrency 1 8 --pictures 32

Each gets an environment of its own in the folder `--work`, torch first and alone so that nothing
else pulls a CUDA build; the variable TORCH says which one. Pictures are sticker scenes. Without
`--base-url` a server with the shipped checkpoint is started on a free port and stopped at the end;
it keeps no features of pictures, for all levels of concurrency send the same ones. The tools' own
reports go to `--out`, without their lists of single requests.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.load import pictures, server_of
from benchmarks.serving import CannotStart
from rediff_model.chat_template import DEFAULT_QUESTION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TORCH: Final = "torch==2.13.0"
GUIDELLM: Final = ("guidellm==0.8.1", "pillow==13.0.0")
VLLM_BARE: Final = ("vllm==0.33.0", "xgrammar==0.2.8")
"""Without their requirements, which are the engine's for CUDA."""
VLLM: Final = (
    "aiohttp==3.14.5",
    "apache-tvm-ffi==0.1.15.post2",
    "blake3==1.0.11",
    "cachetools==8.0.1",
    "cbor2==6.3.0",
    "cloudpickle==3.1.2",
    "compressed-tensors==0.17.0",
    "datasets==5.2.0",
    "depyf==0.20.0",
    "einops==0.8.2",
    "fastapi==0.136.3",
    "huggingface_hub==2.4.0",
    "ijson==3.6.0",
    "jsonschema==4.26.0",
    "llguidance==1.7.6",
    "mistral_common[image]==1.13.1",
    "msgspec==0.22.0",
    "numpy==2.3.5",
    "openai==3.54.0",
    "opencv-python-headless==5.0.0.93",
    "orjson==3.13.0",
    "oss-harmony==0.0.11",
    "pandas==3.1.1",
    "partial-json-parser==0.2.1.1.post7",
    "pillow==13.0.0",
    "prometheus_client==0.26.0",
    "prometheus-fastapi-instrumentator==8.1.0",
    "psutil==7.2.2",
    "py-cpuinfo==9.0.0",
    "pybase64==1.5.1",
    "pydantic==2.14.3",
    "python-json-logger==4.2.0",
    "PyYAML==6.0.3",
    "pyzmq==27.3.0",
    "regex==2026.11.15",
    "requests==2.34.2",
    "sentencepiece==0.2.3",
    "setproctitle==1.3.8",
    "tqdm==4.70.1",
    "transformers==5.20.2",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "watchfiles==1.3.0",
)
"""What `vllm bench serve` imports of those requirements."""
CHECKPOINT: Final = Path(__file__).parents[1] / "rediff_model" / "checkpoints" / "embedded"


class CannotRun(RuntimeError):
    """Something is missing or failed; the message is one line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a tool is asked to do."""

    address: str
    data: Path
    """JSON lines with `prompt`, `image` (guidellm) and `image_files` (vLLM)."""
    count: int
    """Requests at each level, one a picture."""
    concurrency: Sequence[int]
    out: Path


def run_vllm(plan: Plan, binaries: Path) -> None:
    """One run a level; the reports are `vllm-LEVEL.json`.

    Raises:
        CannotRun: the tool failed, or some of its requests did.
    """
    for level in plan.concurrency:
        name = f"vllm-{level}.json"
        _call(
            *(binaries / "vllm", "bench", "serve", "--backend", "openai-chat"),
            *("--base-url", plan.address, "--endpoint", "/v1/chat/completions"),
            *("--tokenizer", _checkpoint(), "--dataset-name", "custom_image"),
            *("--dataset-path", plan.data, "--num-prompts", plan.count),
            *("--max-concurrency", level),
            *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,95"),
            *("--save-result", "--result-dir", plan.out, "--result-filename", name),
        )
        report = _report(plan.out / name)
        _check(name, report["completed"], plan.count)


def run_guidellm(plan: Plan, binaries: Path) -> None:
    """All levels in one run; the report is `guidellm.json`.

    Raises:
        CannotRun: the tool failed, or some of its requests did.
    """
    # A list with commas would be cut at them.
    levels = ",".join(f"streams[{i}]={level}" for i, level in enumerate(plan.concurrency))
    _call(
        *(binaries / "guidellm", "run", "--disable-console-interactive"),
        *("--backend", f"kind=openai_http,target={plan.address}"),
        *("--tokenizer", f"kind=huggingface_auto,model={_checkpoint()}"),
        *("--data", f"kind=json_file,path={plan.data}"),
        *("--profile", f"kind=concurrent,{levels}"),
        *("--constraint", f"kind=max_requests,count={plan.count}"),
        *("--metrics", "kind=generative,sample_size=0"),
        *("--output", "kind=console"),
        *("--output", f"kind=json,path={plan.out / 'guidellm.json'}"),
    )
    file = plan.out / "guidellm.json"
    report = _report(file)
    for run in report["benchmarks"]:
        # Kept whatever it is told, and most of the file.
        del run["requests"]
        _check(file.name, run["metrics"]["request_totals"]["successful"], plan.count)
    file.write_text(json.dumps(report) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Tool:
    """A load generator: what it needs, and how it is run."""

    requirements: Sequence[str]
    bare: Sequence[str]
    """Installed without their own requirements."""
    run: Callable[[Plan, Path], None]


TOOLS: Final = {
    "vllm": Tool(VLLM, VLLM_BARE, run_vllm),
    "guidellm": Tool(GUIDELLM, (), run_guidellm),
}


def environment(folder: Path, tool: Tool) -> Path:
    """The folder of the programs of an environment, which is made once for its requirements.

    Raises:
        CannotRun: pip could not install something.
    """
    binaries, stamp = folder / "bin", folder / "installed.txt"
    torch = os.environ.get("TORCH", TORCH)
    wanted = "\n".join((torch, *tool.requirements, *tool.bare))
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return binaries
    _call(sys.executable, "-m", "venv", "--clear", folder)
    install = (binaries / "python", "-m", "pip", "install", "--quiet")
    _call(*install, torch)
    _call(*install, torch, *tool.requirements)
    if tool.bare:
        _call(*install, "--no-deps", *tool.bare)
    stamp.write_text(wanted, encoding="utf-8")
    return binaries


def draw(file: Path, count: int) -> None:
    """Write scenes as data URLs, in the form that both tools read and neither has to fetch."""
    rows = []
    for content in pictures(count)[1]:
        url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        rows.append({"prompt": DEFAULT_QUESTION, "image": url, "image_files": [url]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _checkpoint() -> str:
    """Where the tokenizer is, in a form that may stand in a report."""
    return os.path.relpath(CHECKPOINT)


def _call(*command: str | Path | int) -> None:
    words = [str(word) for word in command]
    surroundings = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    try:
        subprocess.run(words, check=True, env=surroundings)
    except FileNotFoundError:
        raise CannotRun(f"there is no program {words[0]}") from None
    except subprocess.CalledProcessError as error:
        raise CannotRun(f"{' '.join(words[:4])} … ended with {error.returncode}") from None


def _report(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CannotRun(f"the tool wrote no report {path}") from None
    return report


def _check(name: str, done: int, count: int) -> None:
    if done != count:
        raise CannotRun(f"{name}: only {done} of {count} requests got a caption")


def _check_ready(address: str) -> None:
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(f"{address}/health", timeout=10).close()
    except OSError as error:
        raise CannotRun(f"no server is ready at {address}: {error}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run a tool; `argv` as on the command line, None for that of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--pictures", type=int, default=48, help="and requests, at each level")
    parser.add_argument("--base-url", help="a server that runs; without it one is started")
    parser.add_argument("--serve", default="--threads 1", help="options of the one that is started")
    parser.add_argument("--work", type=Path, default=Path("runs/foreign"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/foreign"))
    options = parser.parse_args(argv)
    tool = TOOLS[options.tool]
    try:
        binaries = environment(options.work / f"env-{options.tool}", tool)
        data = options.work / "scenes.jsonl"
        draw(data, options.pictures)
        options.out.mkdir(parents=True, exist_ok=True)
        with server_of(options) as server:
            _check_ready(server.address)
            plan = Plan(server.address, data, options.pictures, options.concurrency, options.out)
            tool.run(plan, binaries)
    except (CannotRun, CannotStart) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
