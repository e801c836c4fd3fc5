"""The real process on loopback: it loads, answers, drains on SIGTERM, and fails in one line."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import httpx
import pytest
from server_fakes import png

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[3]
REDIFF = (sys.executable, "-c", "from server.cli import main; main()")
REDIFF_AND_ITS_IMPORTS = """
import sys
from server.cli import main
try:
    main()
finally:
    unwanted = ("transformers", "huggingface_hub", "training", "benchmarks")
    print([name for name in unwanted if name in sys.modules])
"""
IMAGE = {"image": {"base64": base64.b64encode(png(64, 48)).decode()}}
LONG = {"canvas_length": 256, "steps": 256}


class Serving:
    """A server process and its log."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._log = log
        self._address: str | None = None
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def address(self) -> str:
        """Where it serves, once it is ready."""
        assert self._ready.wait(120)
        assert self._address, "".join(self.lines)
        return self._address

    def exit_status(self) -> int:
        status = self.process.wait(60)
        self._reader.join()
        return status

    def _read(self) -> None:
        for line in self._log:
            self.lines.append(line)
            if match := re.search(r"is ready at (http://\S+)", line):
                self._address = match[1]
                self._ready.set()
        self._ready.set()


@contextmanager
def serving(checkpoint: Path, *options: str) -> Iterator[Serving]:
    command = [sys.executable, "-c", REDIFF_AND_ITS_IMPORTS, "serve", "--model", str(checkpoint)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, "--port", "0", "--threads", "1", *options],
        cwd=ROOT,
        stdout=pipe,
        stderr=pipe,
        text=True,
    ) as process:
        assert process.stderr is not None
        server = Serving(process, process.stderr)
        try:
            yield server
        finally:
            process.kill()
            server.exit_status()


@pytest.fixture(scope="module")
def start(checkpoint: Path) -> Iterator[Callable[[], Serving]]:
    """The module's one server, started again if a test has ended it."""
    options = ("--max-body-bytes", "100000", "--max-image-bytes", "50000", "--drain-timeout", "120")
    started: list[Serving] = []
    with ExitStack() as stack:

        def get() -> Serving:
            if not started or started[-1].process.poll() is not None:
                started.append(stack.enter_context(serving(checkpoint, *options)))
            return started[-1]

        yield get


@pytest.fixture
def server(start: Callable[[], Serving]) -> Serving:
    return start()


def test_json_and_forms_get_the_same_caption(server: Serving) -> None:
    by_json = httpx.post(f"{server.address}/caption", json=IMAGE, timeout=60)
    by_form = httpx.post(
        f"{server.address}/caption", files={"image": ("a.png", png(64, 48))}, timeout=60
    )
    assert by_json.status_code == by_form.status_code == 200
    assert by_json.json()["caption"] == by_form.json()["caption"]
    assert by_json.json()["model"] == "tiny"
    assert by_json.json()["steps"] == 4
    usage = by_json.json()["usage"]
    assert 0 < usage["image_tokens"] < usage["prompt_tokens"]
    assert usage["caption_tokens"] <= 16


def test_chat_and_stream_work_over_the_wire(server: Serving) -> None:
    url = f"data:image/png;base64,{IMAGE['image']['base64']}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    chat = {"messages": [{"role": "user", "content": content}], "stream": True}
    answer = httpx.post(f"{server.address}/v1/chat/completions", json=chat, timeout=60)
    assert answer.text.endswith("data: [DONE]\n\n")
    events = httpx.post(f"{server.address}/caption", json=IMAGE | {"stream": True}, timeout=60).text
    assert [line for line in events.splitlines() if line.startswith("event")] == [
        *["event: step"] * 4,
        "event: done",
    ]


def test_health_and_version_tell_what_runs(server: Serving) -> None:
    assert httpx.get(f"{server.address}/health").json() == {"status": "ready"}
    version = httpx.get(f"{server.address}/version").json()
    assert (version["device"], version["dtype"]) == ("cpu", "float32")
    assert version["canvas_length"] == 16


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_pictures_of_extreme_shapes_get_a_caption(server: Serving, size: tuple[int, int]) -> None:
    files = {"image": ("a.png", png(*size))}
    assert httpx.post(f"{server.address}/caption", files=files, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "prompt", ["<image>", "<|mdm_mask|>" * 50, "<mask> <|eot_id|>", "<image>\n" * 20, "\0\ufffd"]
)
def test_special_tokens_in_a_prompt_are_words(server: Serving, prompt: str) -> None:
    answer = httpx.post(f"{server.address}/caption", json=IMAGE | {"prompt": prompt}, timeout=60)
    assert answer.status_code == 200
    plain = httpx.post(f"{server.address}/caption", json=IMAGE, timeout=60)
    # However many image tokens the text spells, the picture has as many as ever.
    image_tokens = plain.json()["usage"]["image_tokens"]
    assert answer.json()["usage"]["image_tokens"] == image_tokens


def test_a_client_that_sends_all_of_a_large_body_still_reads_413(server: Serving) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
        connection.request("POST", "/caption", body=b"x" * 20_000_000)
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["error"]["code"] == "body_too_large"
    assert httpx.get(f"{server.address}/health").status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nx: " + b"a" * 8_000_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"POST /caption HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /caption HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"nonsense\r\n\r\n",
    ],
    ids=["huge header", "tls", "negative length", "two lengths", "nonsense"],
)
def test_what_is_no_http_does_not_hurt(server: Serving, raw: bytes) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        answer = b""
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert httpx.get(f"{server.address}/health").status_code == 200


def test_a_client_that_leaves_a_stream_frees_its_place(server: Serving) -> None:
    body = IMAGE | {"stream": True, "sampling": LONG}
    with httpx.stream("POST", f"{server.address}/caption", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    for _ in range(100):
        text = httpx.get(f"{server.address}/metrics").text
        if "rediff_num_requests_running 0.0" in text:
            break
    assert 'rediff_requests_total{outcome="cancelled"} 1.0' in text
    assert "rediff_num_requests_running 0.0" in text


def test_sigterm_lets_the_running_end_and_exits_with_0(server: Serving) -> None:
    body = IMAGE | {"stream": True, "sampling": LONG}
    address = server.address
    with httpx.stream("POST", f"{address}/caption", json=body, timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: step"
        server.process.send_signal(signal.SIGTERM)
        while True:
            ready = httpx.get(f"{address}/health/ready")
            if ready.status_code == 503:
                break
        assert ready.json()["error"]["code"] == "draining"
        refused = httpx.post(f"{address}/caption", json=IMAGE)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert [line for line in lines if line.startswith("event")][-1] == "event: done"
    assert server.exit_status() == 0
    assert not any("Traceback" in line for line in server.lines)
    # A whole life of serving the embedded kind imports none of what takes long to import.
    assert server.process.stdout is not None
    assert server.process.stdout.read() == "[]\n"


def test_after_the_grace_time_a_stream_gets_an_error_and_the_exit_status_is_0(
    checkpoint: Path,
) -> None:
    body = IMAGE | {"stream": True, "sampling": {"canvas_length": 1024, "steps": 1024}}
    keys = ("--api-key", "one-key", "--api-key", "other-key")
    with serving(checkpoint, "--drain-timeout", "0.01", "--log-format", "json", *keys) as server:
        address = f"{server.address}/caption"
        key = {"authorization": "Bearer other-key"}
        assert httpx.post(address, json=body).status_code == 401
        with httpx.stream("POST", address, json=body, headers=key, timeout=120) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: step"
            server.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line.startswith("event")][-1] == "event: error"
        assert server.exit_status() == 0
    logged = [json.loads(line) for line in server.lines]
    requests = [line for line in logged if line["logger"] == "server.access"]
    assert [(line["status"], line.get("error")) for line in requests] == [
        (401, "invalid_api_key"),
        (200, "draining"),
    ]


def test_a_start_that_cannot_succeed_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [*REDIFF, "serve", "--port", "0", "--model", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"rediff: {tmp_path} holds no config")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
