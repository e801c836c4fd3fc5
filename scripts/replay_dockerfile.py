"""Replay the steps of the Dockerfile where no engine builds images, and try what comes of them.

debootstrap --variant=minbase \
  --include=ca-certificates,python3,python3-pip,python3-venv bookworm base
ln -s python3 base/usr/bin/python
python -m scripts.replay_dockerfile --base base --work stages --target cpu

The folder `base` stands for every image that is not a stage of the file. A stage is a copy of its
image's folder in which RUN lines run under chroot, with its environment and user and no others.
Then ENTRYPOINT and CMD start in a network that holds nothing but loopback, and the health check
must pass there. A mirror of packages is told with `--bind` (a path of this machine that the steps
see as well) and `--env` (a variable that they have as well). For root on Linux; an image's own
layers, limits and volumes are not replayed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.dockerfile import Stage, Step, expand, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_SECONDS = 120


@dataclass(frozen=True, slots=True)
class State:
    """What a stage's steps have said so far, which those that build on it inherit."""

    variables: Mapping[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}
    )
    user: str = "0"
    folder: str = "/"
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    said: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Words of ENTRYPOINT, CMD and HEALTHCHECK."""


class Replay:
    """Stages as folders, made when they are asked for."""

    def __init__(self, stages: Sequence[Stage], options: argparse.Namespace) -> None:
        self._stages = {stage.name: stage for stage in stages}
        self._options = options
        self._outside = dict(one.split("=", 1) for one in options.env)
        self._arguments = dict(one.split("=", 1) for one in options.build_arg)
        self._ignored = ignored(options.context)
        self._done: dict[str, State] = {}

    def root(self, image: str) -> Path:
        """Where a stage or image lies."""
        folder: Path = self._options.base
        if image in self._stages:
            folder = self._options.work / image
        return folder.resolve()

    def build(self, name: str) -> State:
        """Replay a stage and what it is made of; its last state."""
        if name not in self._stages:
            return State()
        if name not in self._done:
            stage = self._stages[name]
            state = self.build(stage.image)
            tell(f"stage {name} from {stage.image}")
            subprocess.run(["cp", "-a", self.root(stage.image), self.root(name)], check=True)
            for step in stage.steps:
                state = self._step(name, step, state)
            self._done[name] = state
        return self._done[name]

    def _step(self, stage: str, step: Step, state: State) -> State:
        value = step.value
        match step.name:
            case "RUN":
                tell(f"  RUN {' '.join(value.split())}")
                subprocess.run(self.inside(stage, state, *state.shell, value), check=True)
            case "COPY":
                tell(f"  COPY {value}")
                self._copy(stage, value, state)
            case "ENV" | "ARG":
                pairs = [word.partition("=") for word in shlex.split(value)]
                said = {key: expand(default, state.variables) for key, _, default in pairs}
                if step.name == "ARG":
                    said = {key: self._arguments.get(key, said[key]) for key in said}
                return replace(state, variables={**state.variables, **said})
            case "USER":
                return replace(state, user=value)
            case "WORKDIR":
                (self.root(stage) / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
                return replace(state, folder=value)
            case "SHELL":
                return replace(state, shell=tuple(json.loads(value)))
            case "ENTRYPOINT" | "CMD" | "HEALTHCHECK":
                words = tuple(json.loads(value[value.index("[") :]))
                return replace(state, said={**state.said, step.name: words})
            case "EXPOSE" | "VOLUME":
                tell(f"  {step.name} {value} is the engine's")
            case "STOPSIGNAL":
                return replace(state, said={**state.said, "STOPSIGNAL": (value,)})
            case _:
                raise ValueError(f"{step.name} {value}: this instruction cannot be replayed")
        return state

    def _copy(self, stage: str, value: str, state: State) -> None:
        words = value.split()
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        *sources, target = [word for word in words if not word.startswith("--")]
        source = self._options.context if "from" not in flags else None
        if source is None:
            self.build(flags["from"])
            source = self.root(flags["from"])
        to = self.root(stage) / state.folder.lstrip("/") / target
        if target.startswith("/"):
            to = self.root(stage) / target.lstrip("/")
        for one in sources:
            found = source / one.lstrip("/")
            if found.is_dir():
                leave = None if "from" in flags else self._leave
                shutil.copytree(found, to, symlinks=True, dirs_exist_ok=True, ignore=leave)
            else:
                folder = to if target.endswith("/") else to.parent
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, folder / found.name if target.endswith("/") else to)
        if "chown" in flags:
            subprocess.run(["chown", "-R", flags["chown"], to], check=True)

    def _leave(self, folder: str, names: list[str]) -> set[str]:
        """What .dockerignore keeps out of the context."""
        below = Path(folder).relative_to(self._options.context)
        return {
            name
            for name in names
            for pattern in self._ignored
            if fnmatch(str(below / name), pattern.removeprefix("**/"))
            or (pattern.startswith("**/") and fnmatch(name, pattern[3:]))
        }

    def inside(self, stage: str, state: State, *words: str, alone: bool = False) -> list[str]:
        """The command that runs words in a stage's folder, as its user, with its environment.

        `alone` leaves out what the steps see of this machine.
        """
        root = self.root(stage)
        mounts = [f"mount -t proc proc {shlex.quote(str(root))}/proc"]
        for path in () if alone else self._options.bind:
            to = root / str(path).lstrip("/")
            if path.is_dir():
                to.mkdir(parents=True, exist_ok=True)
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                to.touch()
            mounts.append(shlex.join(["mount", "--rbind", str(path), str(to)]))
        outside = {} if alone else self._outside
        users = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
        home = next((fields[5] for fields in users if fields[2] == state.user), "/")
        variables = {"HOME": home, **outside, **state.variables}
        pairs = [f"{name}={value}" for name, value in variables.items()]
        enter = ["chroot", f"--userspec={state.user}:{state.user}", str(root)]
        enter += ["env", "-i", "-C", state.folder, *pairs, *words]
        script = f"{' && '.join(mounts)} && exec {shlex.join(enter)}"
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]

    def serve(self, stage: str, state: State) -> None:
        """Start the stage's program, wait for its health check, and stop it.

        Raises:
            SystemExit: it ended, never got healthy, runs as root, or was not stopped by the signal.
        """
        words = [*state.said["ENTRYPOINT"], *state.said["CMD"]]
        apart = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        tell(f"start {shlex.join(words)}")
        with subprocess.Popen([*apart, *self.inside(stage, state, *words, alone=True)]) as process:
            try:
                enter = ["nsenter", f"--target={process.pid}", "--net"]
                asked = self.inside(stage, state, *state.said["HEALTHCHECK"], alone=True)
                check = [*enter, *asked]
                until = time.monotonic() + START_SECONDS
                while subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode:
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit(f"not healthy; exit status {process.returncode}")
                    time.sleep(1)
                (server,) = (
                    Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                )
                owner = Path(f"/proc/{server}").stat().st_uid
                tell(f"healthy, as user {owner}")
                if owner == 0:
                    raise SystemExit("the program runs as root")
                os.kill(int(server), signal.Signals[state.said["STOPSIGNAL"][0]])
                if status := process.wait(timeout=START_SECONDS):
                    raise SystemExit(f"stopped with status {status}")
            finally:
                process.kill()


def ignored(context: Path) -> list[str]:
    """The patterns of the context's .dockerignore."""
    path = context / ".dockerignore"
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def tools(root: Path) -> Iterator[str]:
    """Tools to build with that lie in a stage's folder."""
    for folder in ("usr/bin", "usr/local/bin", "opt/rediff/bin"):
        for name in ("cc", "gcc", "g++", "make", "ld"):
            if (root / folder / name).exists():
                yield f"/{folder}/{name}"


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="stands for the images")
    parser.add_argument("--work", type=Path, required=True, help="takes the stages; must be new")
    parser.add_argument("--target", default="cpu", help="stage to make and to start")
    parser.add_argument("--context", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--bind", action="append", default=[], type=Path, metavar="PATH")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    arguments = dict(one.split("=", 1) for one in options.build_arg)
    replay = Replay(parse((options.context / "Dockerfile").read_text(), arguments), options)
    state = replay.build(options.target)
    if found := list(tools(replay.root(options.target))):
        raise SystemExit(f"tools to build with are left: {', '.join(found)}")
    replay.serve(options.target, state)
    tell(f"{options.target}: every step ran, and the program was healthy")


if __name__ == "__main__":
    main()
