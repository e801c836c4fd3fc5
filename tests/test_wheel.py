"""The wheel holds all that is needed to serve, installed elsewhere beside what it asks for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import venv
import zipfile
from contextlib import contextmanager
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "kernels", "rediff_model", "server", "training")
START_SECONDS = 120
WHERE_FROM = f"""
import json
from importlib import import_module
print(json.dumps([import_module(name).__file__ for name in {PACKAGES}]))
"""


def in_tree() -> set[str]:
    """The files of our packages, as paths below the root."""
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    paths = (path.relative_to(ROOT) for path in files)
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def requirements(wheel: Path) -> dict[str, Distribution]:
    """What the wheel needs without its extras, and what that needs in turn, by name."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        headers = message_from_bytes(archive.read(metadata))
    left = [(text, "") for text in headers.get_all("Requires-Dist", [])]
    found: dict[str, Distribution] = {}
    followed: set[tuple[str, str]] = set()
    while left:
        text, extra = left.pop()
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        found[needed.name] = distribution(needed.name)
        for one in {(needed.name, extra) for extra in ("", *needed.extras)} - followed:
            followed.add(one)
            left += [(text, one[1]) for text in found[needed.name].requires or ()]
    return found


class Installed:
    """An environment with the wheel in it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.packages = next((folder / "lib").glob("python*/site-packages"))
        for one in requirements(wheel).values():
            for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
                if not (self.packages / top).exists():
                    (self.packages / top).symlink_to(one.locate_file(top))  # type: ignore[arg-type]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        to = ["--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*pip, *to, "--no-index", "--no-deps", str(wheel)], check=True)

    def run(self, cwd: Path, program: str, *arguments: str) -> str:
        """What a program of the environment prints."""
        command = [str(self.bin / program), *arguments]
        return subprocess.check_output(command, cwd=cwd, env=environment(), text=True)

    @contextmanager
    def serving(self, cwd: Path) -> Iterator[str]:
        """The address of `rediff serve` with its embedded checkpoint."""
        command = [str(self.bin / "rediff"), "serve", "--port", "0", "--threads", "1"]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=cwd, env=environment(), stderr=pipe, text=True
        ) as process:
            assert process.stderr is not None
            late = threading.Timer(START_SECONDS, process.kill)
            late.start()
            lines: list[str] = []
            try:
                for line in process.stderr:
                    lines.append(line)
                    if match := re.search(r"is ready at (http://\S+)", line):
                        break
                else:
                    pytest.fail("".join(lines))
                late.cancel()
                yield match[1]
            finally:
                late.cancel()
                process.terminate()
                # Read to the end, so that a full pipe does not hold it up.
                process.stderr.read()


def environment() -> dict[str, str]:
    """Without what would lead back to the working tree."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("rediff_serve-*-py3-none-any.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("elsewhere") / "venv", wheel)


def test_every_file_of_the_packages_is_in_it_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == in_tree()
    for needed in (
        "rediff_model/checkpoints/embedded/model.safetensors",
        "server/api/web/index.html",
        "server/dashboards/alerts.yml",
        "server/dashboards/rediff.json",
    ):
        assert needed in names


def test_what_it_needs_is_declared(wheel: Path) -> None:
    names = requirements(wheel)
    assert {"torch", "fastapi", "starlette"} <= set(names)
    assert not {"pytest", "hypothesis", "ruff"} & set(names)


def test_it_serves_elsewhere(installed: Installed, tmp_path: Path) -> None:
    origins = json.loads(installed.run(tmp_path, "python", "-c", WHERE_FROM))
    assert [Path(file).parent for file in origins] == [installed.packages / n for n in PACKAGES]
    installed.run(tmp_path, "rediff", "data", "scenes", "--n", "1", "--out", "scenes")
    scene = tmp_path / "scenes"
    objects = json.loads((scene / "annotations.jsonl").read_text(encoding="utf-8"))["objects"]
    with installed.serving(tmp_path) as address, httpx.Client(base_url=address) as client:
        page = client.get("/")
        assert "<title>" in page.text
        for path in (ROOT / "server" / "api" / "web").iterdir():
            if path.is_file():
                assert client.get(f"/web/{path.name}").content == path.read_bytes()
        picture = {"image": ("scene.png", (scene / "000000.png").read_bytes())}
        answer = client.post("/caption", files=picture, timeout=60)
    assert answer.status_code == 200, answer.text
    named = [one["name"] for one in objects if one["name"] in answer.json()["caption"]]
    assert len(named) >= len(objects) / 2, answer.text
