"""The load generator accounts for every request, whatever a server does to it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from server_wire import serving

from benchmarks import load
from benchmarks.outcomes import Outcome, percentiles, summarise
from benchmarks.serving import CannotStart, Memory, started
from benchmarks.wire import Answer, Lost, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

DONE = json.dumps({"caption": "two apples", "steps": 4})
ERROR = json.dumps({"error": {"code": "deadline_exceeded"}})


def outcome(
    result: Answer | Lost, due: float = 0.0, late: float = 0.0, ended: float = 1.0
) -> Outcome:
    return Outcome(due, due + late, ended, result)


def stream(*events: tuple[float, str, str]) -> Answer:
    return Answer(200, {}, b"", list(events))


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (Answer(200, {}, DONE.encode()), "200"),
        (Answer(429, {}), "429"),
        (Lost("timeout"), "lost: timeout"),
        (stream((1, "step", "{}"), (2, "done", DONE)), "200"),
        (stream((1, "step", "{}"), (2, "error", ERROR)), "200 deadline_exceeded"),
        (stream((1, "step", "{}")), "lost: no end"),
    ],
)
def test_every_request_is_of_a_kind(result: Answer | Lost, kind: str) -> None:
    assert outcome(result).kind == kind


def test_rates_are_those_of_the_window_and_counts_those_of_all() -> None:
    good = Answer(200, {}, DONE.encode())
    outcomes = [
        outcome(good, due=0, ended=9.0),  # before the window
        outcome(good, due=10, ended=11.0),
        outcome(good, due=10, ended=15.0),  # above the objective
        outcome(good, due=19, ended=21.0),  # after the window
        outcome(Answer(429, {"retry-after": "1"}), due=12, late=0.5, ended=12.75),
        outcome(Answer(503, {}), due=12, ended=12.25),
        outcome(Lost("broken"), due=13, ended=13.0),
    ]
    figures = summarise(outcomes, began=10, seconds=10, objective=3)
    assert figures["sent"] == 7
    assert figures["outcomes"] == {"200": 4, "429": 1, "503": 1, "lost: broken": 1}
    assert figures["lost"] == 1
    assert figures["refused_without_retry_after"] == 1
    assert figures["captions_per_second"] == 0.2
    assert figures["goodput_per_second"] == 0.1
    assert figures["sent_per_second"] == 0.6
    # Latency counts from when a request was due, not from when it could be sent.
    assert figures["refusal_seconds"]["max"] == 0.75
    assert figures["sender_late_seconds"]["max"] == 0.5
    assert figures["first_step_seconds"] is None


def test_times_of_steps() -> None:
    events = [(2.0, "step", "{}"), (2.5, "step", "{}"), (4.0, "step", "{}"), (4.0, "done", DONE)]
    figures = summarise([outcome(stream(*events), due=1, ended=4.0)], 0, 10, 10)
    assert figures["first_step_seconds"]["max"] == 1.0
    assert figures["between_steps_seconds"] == pytest.approx(
        {"p50": 1.0, "p90": 1.4, "p95": 1.45, "p99": 1.49, "max": 1.5}
    )


def test_percentiles_of_nothing_are_none() -> None:
    assert percentiles([]) is None


def respond(reply: bytes, *, close: bool) -> Callable[..., Awaitable[None]]:
    """A handler that reads a request without a body and replies, again and again."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(reply)
                if close:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    return handle


@asynccontextmanager
async def listening(handle: Callable[..., Awaitable[None]]) -> AsyncIterator[str]:
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        yield f"http://{host}:{port}"


async def answers(reply: bytes, *, close: bool, count: int = 2) -> list[Answer | str]:
    """What some requests, one after the other, get of a server that replies with these bytes."""
    got: list[Answer | str] = []
    async with listening(respond(reply, close=close)) as address:
        wire = Wire(address, {}, timeout=0.5)
        for _ in range(count):
            try:
                got.append(await wire.send(wire.post("/caption", b"")))
            except Lost as reason:
                got.append(str(reason))
        await wire.close()
    return got


@pytest.mark.parametrize(
    ("reply", "close", "reason"),
    [
        (b"", True, "broken"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", True, "broken"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc", True, "broken"),
        (b"nonsense\r\n\r\n", True, "broken"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", False, "timeout"),
    ],
)
def test_an_answer_that_does_not_end_is_lost(reply: bytes, close: bool, reason: str) -> None:
    assert asyncio.run(answers(reply, close=close)) == [reason] * 2


@pytest.mark.parametrize("close", [False, True])
def test_answers_in_one_piece_and_in_chunks(close: bool) -> None:
    last = b"connection: close\r\n" if close else b""
    head = b"HTTP/1.1 200 OK\r\n" + last
    whole = head + b"content-length: 3\r\n\r\nabc"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    for reply in (whole, chunked):
        for answer in asyncio.run(answers(reply, close=close)):
            assert isinstance(answer, Answer)
            assert (answer.status, answer.body) == (200, b"abc")


def test_events_are_put_together_from_chunks() -> None:
    parts = (b"event: st", b"ep\ndata: {}\n\n: keep-alive\n\nevent: done\nda", b"ta: 1\n\n")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n"
    (answer,) = asyncio.run(answers(head + b"\r\n" + chunks, close=False, count=1))
    assert isinstance(answer, Answer)
    assert [event[1:] for event in answer.events] == [("step", "{}"), ("done", "1")]


def test_nobody_who_listens_is_a_lost_request() -> None:
    async def send() -> None:
        async with listening(respond(b"", close=True)) as address:
            pass
        wire = Wire(address, {}, timeout=5)
        with pytest.raises(Lost, match="connect"):
            await wire.send(wire.post("/caption", b"{}"))

    asyncio.run(send())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://"])
def test_what_is_no_url_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="no URL"):
        Wire(url, {}, 1)


def test_the_command_writes_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    small = "--pictures 3 --warm-up 0 --seconds 0.3 --capacity-seconds 0.5 --capacity-callers 2"
    with serving(max_batch=2, max_queue=2) as address:
        for words in (
            "--concurrency 2 --rate 20 --sse",
            '--times-capacity 2 --sampling {"steps":1}',
        ):
            arguments = [*small.split(), *words.split(), "--base-url", f"http://{address}"]
            load.main([*arguments, "--json", str(out)])
            result = json.loads(out.read_text(encoding="utf-8"))
            assert json.loads(capsys.readouterr().out) == result
            for run in result["runs"]:
                assert run["sent"] == sum(run["outcomes"].values()) > 0
                assert run["outcomes"].keys() <= {"200", "429"}
                assert run["lost"] == run["refused_without_retry_after"] == 0
                assert (run["first_step_seconds"] is not None) == ("--sse" in words)
        assert result["runs"][0]["goodput_of_capacity"] >= 0
        assert len(result["capacity_per_second"]) == 2


def test_a_server_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(CannotStart, match=r"--max-batch: .*got '0'"),
        started(["--max-batch", "0"]),
    ):
        pytest.fail("a server with no batch has started")


def test_memory_is_read_while_something_runs() -> None:
    async def watch(pid: int | None) -> Memory:
        async with Memory(pid) as memory:
            await asyncio.sleep(0)
        return memory

    assert asyncio.run(watch(None)).to_json() is None
    memory = Memory(1, [100, 200, 300, 500, 400, 600, 800, 900])
    figures = memory.to_json()
    assert figures == {"peak": 900 / 1e6, "growth": 450 / 1e6}
