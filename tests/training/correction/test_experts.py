"""Experts: the oracle, its noisy twin, and an endpoint played by a server of our own."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from scene_samples import NAMES, random_scene, sample_tokenizer

from training.correction.experts.answers import Malformed, read_answer
from training.correction.experts.build import ExpertShape, chat_expert
from training.correction.experts.cache import AnswerCache
from training.correction.experts.chat import ChatExpert, ChatSettings
from training.correction.experts.noisy import NoisyExpert
from training.correction.experts.oracle import OracleExpert
from training.correction.experts.protocol import ExpertError, Unanswered
from training.correction.records import Draft, Verdict, read_records
from training.correction.token_edits import apply
from training.correction.verdicts import PATIENCE, correct
from training.data.conversation import Pair
from training.data.segment_labels import Correction, locate
from training.scenes.hallucinations import hallucinate
from training.stickers.grammar import compose
from training.stickers.score import score


def make_draft(text: str, key: str = "k", ids: list[int] | None = None, seed: int = 0) -> Draft:
    ids = sample_tokenizer().encode(text).ids if ids is None else ids
    return Draft(key, "What is it?", "A fox.", tuple(ids), text, 4, scene=("train", seed))


def noisy_draft(seed: int) -> Draft:
    """A caption of a scene as many tokens a step spoil it: wrong, repeated and garbage tokens."""
    rng = np.random.default_rng(seed)
    scene = random_scene(seed)
    ids = sample_tokenizer().encode(compose(scene, rng).text).ids
    for place in (rng.random(len(ids)) < 0.06).nonzero()[0].tolist():
        garbage = int(rng.integers(6, 570))
        ids[place] = garbage if rng.random() < 0.5 else ids[max(0, place - 1)]
    text = sample_tokenizer().decode(ids)
    return make_draft(text, f"draft-{seed}", ids, seed)


def scene_of(draft: Draft) -> Any:
    assert draft.scene is not None
    return random_scene(draft.scene[1])


def oracle() -> OracleExpert:
    return OracleExpert(scene_of, sample_tokenizer())


def corrected(draft: Draft, verdict: Verdict) -> Correction:
    """The draft with every pair applied; none may be lost on the way."""
    segments, missing = locate([draft.text], verdict.pairs, draft.key)
    correction, used, left_out = apply(draft, segments, sample_tokenizer())
    assert (missing, left_out) == ([], [])
    assert len(used) == len(verdict.pairs)
    return correction


def test_oracle_pairs_fit_the_draft_and_make_it_true() -> None:
    fluency = []
    for seed in range(12):
        draft = noisy_draft(seed)
        correction = corrected(draft, oracle().judge(draft))
        assert len(correction.labels) == len(draft.ids)
        kept = [row for row, flagged in enumerate(correction.revise) if not flagged]
        assert all(correction.labels[row] == draft.ids[row] for row in kept)
        before = score(scene_of(draft), draft.text, NAMES)
        after = score(scene_of(draft), sample_tokenizer().decode(correction.labels), NAMES)
        assert after.factuality == 1 > before.fluency
        fluency.append(after.fluency)
    assert np.mean(fluency) > 0.97


def test_the_oracle_changes_no_more_than_what_was_spoilt() -> None:
    rng = np.random.default_rng(3)
    for seed in range(8):
        scene = random_scene(seed)
        pair = hallucinate(scene, compose(scene, rng), sample_tokenizer(), NAMES, rng)
        assert pair is not None
        text = sample_tokenizer().decode(pair.org_ids)
        draft = make_draft(text, ids=pair.org_ids, seed=seed)
        correction = corrected(draft, oracle().judge(draft))
        changed = sum(a != b for a, b in zip(correction.labels, pair.org_ids, strict=True))
        assert 0 < changed <= len(pair.changed)


def test_a_right_draft_is_right_and_an_empty_one_is_not() -> None:
    draft = make_draft(compose(random_scene(4), np.random.default_rng(0)).text, seed=4)
    assert oracle().judge(draft) == Verdict(right=True)
    assert oracle().judge(make_draft("")) == Verdict(whole=False)


def noisy(dropped: float, wrong: float, seed: int = 0) -> NoisyExpert:
    return NoisyExpert(
        oracle(), lambda chance: random_scene(chance.randrange(99)), dropped, wrong, seed
    )


def test_noise_is_seeded_and_its_shares_are_kept() -> None:
    drafts = [noisy_draft(seed) for seed in range(12)]
    exact = [set(oracle().judge(draft).pairs) for draft in drafts]
    total = sum(map(len, exact))
    assert [set(noisy(0, 0).judge(draft).pairs) for draft in drafts] == exact
    assert not any(noisy(1, 0).judge(draft).pairs for draft in drafts)
    half = [set(noisy(0.5, 0).judge(draft).pairs) for draft in drafts]
    assert all(some <= every for some, every in zip(half, exact, strict=True))
    assert 0.3 < sum(map(len, half)) / total < 0.7
    assert half == [set(noisy(0.5, 0).judge(draft).pairs) for draft in drafts]
    assert half != [set(noisy(0.5, 0, seed=1).judge(draft).pairs) for draft in drafts]


def test_wrong_corrections_fit_the_draft_but_not_the_picture() -> None:
    factuality = []
    for seed in range(8):
        draft = noisy_draft(seed)
        verdict = noisy(0, 1).judge(draft)
        assert verdict.pairs
        assert not set(verdict.pairs) & set(oracle().judge(draft).pairs)
        text = sample_tokenizer().decode(corrected(draft, verdict).labels)
        factuality.append(score(scene_of(draft), text, NAMES).factuality)
    assert np.mean(factuality) < 0.9


def test_shares_of_noise_are_checked() -> None:
    with pytest.raises(ValueError, match=r"0\.7 and 0\.5"):
        noisy(0.7, 0.5)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("right", ()),
        ('"Right."', ()),
        ("**Right**", ()),
        ("_right_.", ()),
        ("[]", ()),
        ('[{"org": "a", "target": "b"}]', (Pair("a", "b"),)),
        ('```json\n[{"org": "a", "target": "b"}]\n```', (Pair("a", "b"),)),
        ('{"org": "a", "target": "b"}', (Pair("a", "b"),)),
        ('{"pairs": [{"org": "a", "target": "b", "why": 1}]}', (Pair("a", "b"),)),
        ('Here:\n```json\n[{"org": "a", "target": "b"}]\n```\nDone.', (Pair("a", "b"),)),
        ("<think>\nA fox. ```red```?\n</think>\n\nright", ()),
    ],
)
def test_answers_are_read(text: str, pairs: tuple[Pair, ...]) -> None:
    assert read_answer(text) == pairs


@pytest.mark.parametrize(
    "text",
    ["", "The draft is right", '[{"org": "a"}]', '["a"]', '[{"org": " ", "target": "b"}]', "[" * 9],
)
def test_other_answers_are_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        read_answer(text)


Reply = Callable[[BaseHTTPRequestHandler], None]


def completion(text: str | None) -> Reply:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "stub"}
    return raw(200, json.dumps({**body, "choices": [choice], "usage": usage}))


def raw(status: int, body: str, headers: dict[str, str] | None = None) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        data = body.encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@dataclass
class Stub:
    """An endpoint that gives the replies it was told, then the last one again."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def never(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer nothing until the test is over."""
        self.released.wait(20)
        handler.close_connection = True

    def next(self, request: dict[str, Any]) -> Reply:
        with self.lock:
            self.requests.append(request)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@pytest.fixture
def stub() -> Iterator[Stub]:
    state = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.next(json.loads(body))(self)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    state.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Endpoint:
    """Makes experts that talk to the stub, and remembers how long they were told to wait."""

    client: openai.OpenAI
    cache: AnswerCache | None = None
    waits: list[float] = field(default_factory=list)
    settings: ChatSettings = field(
        default_factory=lambda: ChatSettings(
            "stub", timeout=5.0, attempts=3, prompt_price=2.0, completion_price=8.0
        )
    )

    def expert(self, **changes: Any) -> ChatExpert:
        return ChatExpert(
            self.client,
            replace(self.settings, **changes),
            sample_tokenizer(),
            lambda _: Image.new("RGB", (1200, 20), "red"),
            self.cache,
            self.waits.append,
        )


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """Slow to make, because it reads certificates."""
    with openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none") as client:
        yield client


@pytest.fixture
def endpoint(stub: Stub, client: openai.OpenAI) -> Endpoint:
    return Endpoint(client.with_options(base_url=stub.url))


def pairs_text(*pairs: tuple[str, str]) -> str:
    return json.dumps([{"org": org, "target": target} for org, target in pairs])


FOX = make_draft("There are two stickers. The red fox is large.")


def test_the_expert_sees_everything_and_its_pairs_come_back(stub: Stub, endpoint: Endpoint) -> None:
    stub.replies = [completion(pairs_text(("red", "blue"), ("two", "three")))]
    expert = endpoint.expert()
    pairs = (Pair("red", "blue"), Pair("two", "three"))
    # What is left out is no error to it, so it never says that a draft is whole.
    assert expert.judge(FOX) == Verdict(pairs, whole=False)
    [request] = stub.requests
    system, user = request["messages"]
    picture, text = user["content"]
    assert request["model"] == "stub"
    assert "org" in system["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert all(part in text["text"] for part in (FOX.question, FOX.reference, FOX.text))
    assert expert.usage() == {
        "requests": 1, "prompt_tokens": 1000, "completion_tokens": 10, "cost": 0.00208,
    }  # fmt: skip


def test_right_is_right(stub: Stub, endpoint: Endpoint) -> None:
    stub.replies = [completion("right")]
    assert endpoint.expert().judge(FOX) == Verdict(right=True, whole=False)


@pytest.mark.parametrize(
    "text",
    [
        "I see a fox.",
        None,
        '{"a": 1, "b": 2}',
        f'[{{"org": {"1" * 5000}}}]',
        '[{"org": "red", "target": "\\ud800"}]',
        "half of \ud800",
    ],
)
def test_a_malformed_answer_is_a_fault(stub: Stub, endpoint: Endpoint, text: str | None) -> None:
    stub.replies = [completion(text)]
    expert = endpoint.expert()
    assert expert.judge(FOX) == Verdict(fault="malformed")
    assert (expert.counts["malformed"], len(stub.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("failure", "count"),
    [
        (raw(429, '{"error": {"message": "slow down"}}'), "rate_limited"),
        (raw(500, "oops"), "retries"),
        (raw(503, '{"error": {}}'), "retries"),
        (raw(200, "<html>", {"Content-Type": "text/html"}), "garbled"),
        (raw(200, "{not json"), "garbled"),
        (raw(200, "{}"), "garbled"),
        (raw(200, '{"choices": []}'), "garbled"),
        (raw(200, '{"choices": [{"message": null}]}'), "garbled"),
        (raw(200, '{"choices": [{"message": {"content": 5}}]}'), "garbled"),
        (raw(200, '{"choices": [{"message": {"content": [{"type": "text"}]}}]}'), "garbled"),
        (hang_up, "retries"),
    ],
)
def test_failures_are_tried_again(
    stub: Stub, endpoint: Endpoint, failure: Reply, count: Any
) -> None:
    stub.replies = [failure, failure, completion("right")]
    expert = endpoint.expert()
    assert expert.judge(FOX).right
    assert (expert.counts["requests"], expert.counts["retries"], expert.counts[count]) == (3, 2, 2)
    first, second = endpoint.waits
    assert 0.5 <= first <= 1 <= second <= 2


def test_time_outs_are_counted_and_end_in_no_answer(stub: Stub, endpoint: Endpoint) -> None:
    stub.replies = [stub.never]
    expert = endpoint.expert(timeout=0.1, attempts=2)
    with pytest.raises(Unanswered, match=r"2 attempts: no answer within 0\.1 s"):
        expert.judge(FOX)
    assert expert.counts["timed_out"] == 2


def test_retry_after_holds_every_thread(stub: Stub, endpoint: Endpoint) -> None:
    stub.replies = [raw(429, "{}", {"Retry-After": "40"}), completion("right")]
    expert = endpoint.expert()
    assert expert.judge(FOX).right
    backoff, hold = endpoint.waits
    assert backoff <= 1
    assert 35 < hold <= 40
    expert.judge(make_draft("Another.", "other"))
    assert 35 < endpoint.waits[-1] <= 40


def test_retry_after_may_be_a_date_and_too_late(stub: Stub, endpoint: Endpoint) -> None:
    stub.replies = [raw(429, "{}", {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"})]
    with pytest.raises(ExpertError, match="asks to wait"):
        endpoint.expert().judge(FOX)


@pytest.mark.parametrize(("status", "wait"), [(429, 0), (503, 40)])
def test_a_date_without_a_zone_is_of_utc_and_a_busy_server_may_ask_too(
    stub: Stub, endpoint: Endpoint, status: int, wait: int
) -> None:
    headers = {"Retry-After": str(wait) if wait else "Fri, 01 Jan 2021 00:00:00 -0000"}
    stub.replies = [raw(status, "{}", headers), completion("right")]
    assert endpoint.expert().judge(FOX).right
    assert [pause for pause in endpoint.waits if pause > 1] == [pytest.approx(40, abs=5)] * bool(
        wait
    )


@pytest.mark.parametrize("status", [401, 402, 403, 404, 429])
def test_a_refused_key_ends_the_run(stub: Stub, endpoint: Endpoint, status: int) -> None:
    stub.replies = [
        raw(status, '{"error": {"message": "no such key", "code": "insufficient_quota"}}')
    ]
    with pytest.raises(ExpertError, match="no such key"):
        endpoint.expert().judge(FOX)
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None, "completion_tokens": "7"}, "none"]
)
def test_usage_that_tells_nothing_costs_nothing(
    stub: Stub, endpoint: Endpoint, usage: object
) -> None:
    parts = [{"type": "text", "text": "ri"}, {"type": "image"}, {"type": "text", "text": "ght"}]
    reply = {"choices": [{"message": {"role": "assistant", "content": parts}}], "usage": usage}
    stub.replies = [raw(200, json.dumps(reply), {"Content-Type": "application/json"})]
    expert = endpoint.expert()
    assert expert.judge(FOX).right
    assert expert.usage()["cost"] == 0


def test_refusing_every_draft_ends_the_run_and_spends_none(
    stub: Stub, endpoint: Endpoint, tmp_path: Path
) -> None:
    path = tmp_path / "verdicts.jsonl"
    drafts = [make_draft(f"Draft {number}.", f"k{number}") for number in range(PATIENCE + 5)]
    refusal = raw(400, '{"error": {"message": "this model sees no pictures"}}')
    stub.replies = [refusal, completion("right"), refusal]
    with pytest.raises(ExpertError, match=f"{PATIENCE} drafts in a row were refused"):
        correct(drafts, endpoint.expert(concurrency=1), path)
    assert [record["key"] for record in read_records(path)] == ["k0", "k1"]
    stub.replies = [completion("right"), refusal]
    counts = correct(drafts[:5], endpoint.expert(concurrency=1), path)
    assert counts == {"known": 2, "right": 1, "refused": 2}


def test_a_refused_picture_is_a_fault_of_its_own(stub: Stub, endpoint: Endpoint) -> None:
    stub.replies = [raw(400, '{"error": {"message": "content policy"}}')]
    expert = endpoint.expert()
    assert expert.judge(FOX) == Verdict(fault="refused")
    assert (expert.counts["refused"], len(stub.requests)) == (1, 1)


def test_unequal_pairs_are_asked_about_once(stub: Stub, endpoint: Endpoint) -> None:
    first = pairs_text(("red", "light blue"), ("two", "three"), ("large", "not large"))
    second = pairs_text(("red", "blue"), ("two", "four"), ("large", "really not large"))
    stub.replies = [completion(first), completion(second)]
    expert = endpoint.expert()
    assert expert.judge(FOX).pairs == (
        Pair("red", "blue"), Pair("two", "three"), Pair("large", "not large"),
    )  # fmt: skip
    assert (expert.counts["repairs"], expert.counts["repaired"], len(stub.requests)) == (1, 1, 2)
    *_, answer, question = stub.requests[1]["messages"]
    assert answer["content"] == first
    assert "light blue" in question["content"]
    assert "three" not in question["content"]


def test_repair_may_fail_or_be_switched_off(stub: Stub, endpoint: Endpoint) -> None:
    unequal = pairs_text(("red", "light blue"))
    stub.replies = [completion(unequal), completion("Sorry.")]
    expert = endpoint.expert()
    assert expert.judge(FOX).pairs == (Pair("red", "light blue"),)
    assert (expert.counts["malformed"], expert.counts["repaired"]) == (1, 0)
    stub.replies = [completion(unequal)]
    assert endpoint.expert(repair=False).judge(FOX).pairs == (Pair("red", "light blue"),)
    assert len(stub.requests) == 3


def test_answers_are_cached_by_content(stub: Stub, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.cache = AnswerCache(tmp_path)
    stub.replies = [completion(pairs_text(("red", "blue")))]
    verdict = endpoint.expert().judge(FOX)
    again = endpoint.expert()
    assert again.judge(replace(FOX, key="another key")) == verdict
    # The cost of the first one's answer: that run may have been killed before it could tell.
    assert again.usage() == {"cached": 1, "cost": 0.00208}
    endpoint.expert(model="another").judge(FOX)
    endpoint.expert().judge(replace(FOX, reference="A dog."))
    assert len(stub.requests) == 3
    for path in tmp_path.rglob("*.json"):
        path.write_text('{"text": "ri')
    endpoint.expert().judge(FOX)
    assert len(stub.requests) == 4


def test_many_drafts_at_once_are_written_in_order(
    stub: Stub, endpoint: Endpoint, tmp_path: Path
) -> None:
    together = threading.Barrier(4)

    def meet(handler: BaseHTTPRequestHandler) -> None:
        together.wait(10)
        completion("right")(handler)

    stub.replies = [meet]
    drafts = [make_draft(f"Draft {number}.", f"k{number}") for number in range(8)]
    counts = correct(drafts, endpoint.expert(concurrency=4), tmp_path / "verdicts.jsonl")
    assert counts == {"known": 0, "right": 8}
    keys = [record["key"] for record in read_records(tmp_path / "verdicts.jsonl")]
    assert keys == [draft.key for draft in drafts]


def test_a_dead_endpoint_ends_the_run_and_the_answered_are_kept(
    stub: Stub, endpoint: Endpoint, tmp_path: Path
) -> None:
    path = tmp_path / "verdicts.jsonl"
    drafts = [make_draft(f"Draft {number}.", f"k{number}") for number in range(PATIENCE + 5)]
    stub.replies = [completion("right"), raw(500, "down"), completion("right"), raw(500, "down")]
    with pytest.raises(ExpertError, match=f"{PATIENCE} drafts in a row"):
        correct(drafts, endpoint.expert(concurrency=1, attempts=1), path)
    assert [record["key"] for record in read_records(path)] == ["k0", "k2"]
    stub.replies = [completion("right")]
    counts = correct(drafts, endpoint.expert(concurrency=1), path)
    assert counts == {"known": 2, "right": len(drafts) - 2}


@pytest.mark.parametrize(("silent", "ends"), [(2, False), (3, True)])
def test_too_many_drafts_without_an_answer_end_the_run(
    tmp_path: Path, silent: int, ends: bool
) -> None:
    asked: list[str] = []

    class Forgetful:
        concurrency = 1

        def judge(self, draft: Draft) -> Verdict:
            asked.append(draft.key)
            if int(draft.key) < silent:
                raise Unanswered("no answer: busy")
            return Verdict(right=True)

        def usage(self) -> dict[str, float]:
            return {}

    path = tmp_path / "verdicts.jsonl"
    drafts = [make_draft("A fox.", str(number)) for number in range(20)]
    fault = "20 drafts have no answer: 3 unanswered, 17 right; .* The last: no answer: busy"
    with pytest.raises(ExpertError, match=fault) if ends else nullcontext():
        assert correct(drafts, Forgetful(), path)["unanswered"] == silent
    assert len(list(read_records(path))) == 20 - silent
    asked.clear()
    with pytest.raises(ExpertError, match="3 unanswered") if ends else nullcontext():
        correct(drafts, Forgetful(), path)
    assert asked == [str(number) for number in range(silent)]


def test_decoys_depend_on_the_draft_alone() -> None:
    seen: list[int] = []

    def decoy(chance: random.Random) -> Any:
        seen.append(chance.randrange(10**6))
        return random_scene(1)

    expert = NoisyExpert(oracle(), decoy, wrong=1.0)
    for seed in (0, 2, 0):
        expert.judge(noisy_draft(seed))
    assert seen[0] == seen[2] != seen[1]


@contextmanager
def built(base_url: str | None, cache: Path) -> Iterator[ChatExpert]:
    """An expert as a configuration gives it."""
    shape = ExpertShape(kind="openai", base_url=base_url, attempts=1)
    red = Image.new("RGB", (8, 8), "red")
    expert = chat_expert(shape, sample_tokenizer(), lambda _: red, cache)
    with expert._client:
        yield expert


def test_a_key_goes_to_this_machine_whatever_surrounds_it_and_whatever_the_proxies(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorizations: list[str | None] = []

    def reply(handler: BaseHTTPRequestHandler) -> None:
        authorizations.append(handler.headers["Authorization"])
        completion(pairs_text())(handler)

    monkeypatch.setenv("OPENAI_API_KEY", "\ufeff sk-1 \r\n")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks://127.0.0.1:7890")
    stub.replies = [reply]
    with built(f"{stub.url}/ ", tmp_path) as expert:
        assert expert.judge(make_draft("A fox.")).right
    assert authorizations == ["Bearer sk-1"]


@pytest.mark.parametrize(
    ("changes", "base_url", "message"),
    [
        ({"OPENAI_API_KEY": "\u201csk-secret\u201d"}, None, r"^OPENAI_API_KEY: .* is U\+201C"),
        ({}, "127.0.0.1:8000/v1", r"^expert\.base_url 127\.0\.0\.1:8000/v1: the scheme is missing"),
        ({"OPENAI_BASE_URL": "http://a:b"}, None, "^OPENAI_BASE_URL: the port must be"),
        (
            {"HTTPS_PROXY": "socks://me:secret@p:1"},
            None,
            r"HTTPS_PROXY=socks://\*\*\*@p:1: the s",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    base_url: str | None,
    message: str,
) -> None:
    monkeypatch.delenv("https_proxy", raising=False)
    for name, value in ({"OPENAI_API_KEY": "sk-1"} | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ExpertError, match=message) as error, built(base_url, tmp_path):
        pass
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_proxy_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    named = r"refused.* through the proxy http://\*\*\*@127\.0\.0\.1:9 \(http_proxy\)$"
    with built("http://example.org/v1", tmp_path) as expert, pytest.raises(Unanswered, match=named):
        expert.judge(make_draft("A fox."))
