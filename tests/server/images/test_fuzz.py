"""Random pictures and bodies through the whole app: never a 500, a leak, or a lost place.

The runs marked slow are those whose figures stand in docs/security.md.
"""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import pytest
from fuzz_settings import examples
from hypothesis import given
from hypothesis import strategies as st
from picture_mutations import corpus, mutations
from server_fakes import png, running

from server.images.decode import ImageLimits, decode_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from hypothesis.strategies import SearchStrategy
    from server_fakes import Running

# In a server a warning is no error.
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:RuntimeWarning")

PICTURE = base64.b64encode(png()).decode()
REFUSALS = (400, 408, 413, 415, 422)
LEAKS = ("0x", "/root", "/tmp", ".py", "Traceback", "<PIL", "<_io", "object at")

logger = logging.getLogger(__name__)


class Door:
    """The app in a thread of its own, and what it has answered so far."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, server: Running) -> None:
        self._portal = portal
        self._server = server
        self.answers: Counter[str] = Counter()

    def post(self, path: str, **request: Any) -> None:
        """Send a request and check whatever comes back."""

        async def call() -> httpx.Response:
            return await self._server.client.post(path, **request)

        answer = self._portal.call(call)
        assert answer.status_code == 200 or answer.status_code in REFUSALS, answer.text
        code = "caption"
        # A stream has begun well before it fails.
        assert "internal_error" not in answer.text
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert len(answer.content) < 2000
            assert not [leak for leak in LEAKS if leak in error["message"]]
            code = f"{answer.status_code} {error['code']}"
        self.answers[code] += 1
        assert self._server.service.active == 0

    def is_well(self) -> None:
        """The server still captions a good picture."""
        before = self.answers["caption"]
        self.post("/caption", json={"image": {"base64": PICTURE}})
        assert self.answers["caption"] == before + 1
        logger.info("%d inputs: %s", self.answers.total(), dict(self.answers.most_common()))


@contextmanager
def door() -> Iterator[Door]:
    with anyio.from_thread.start_blocking_portal() as portal:
        app = running(max_image_pixels=1_000_000, max_canvas=64)
        with portal.wrap_async_context_manager(app) as server:
            yield Door(portal, server)


def test_the_corpus_is_good() -> None:
    sizes = {decode_image(file, ImageLimits()).size for file in corpus()}
    assert {(24, 16), (16, 24), (1, 1), (1, 20_000), (16_383, 1), (8, 8)} == sizes


def pictures(count: int, seed: int) -> None:
    with door() as server:
        for number, data in enumerate(mutations(seed, count)):
            if number % 2:
                server.post("/caption", files={"image": ("a", data)})
            else:
                encoded = base64.b64encode(data).decode()
                server.post("/caption", json={"image": {"base64": encoded}})
        server.is_well()
        # Mutations that all fail, or all pass, would test one branch.
        kinds = {"caption", "400 image_broken", "413 image_too_large", "415 unsupported_image"}
        assert kinds <= set(server.answers)


def test_broken_pictures() -> None:
    pictures(150, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_thousand_broken_pictures() -> None:
    pictures(20_000, seed=2)


# Numbers that have broken servers: at limits, beyond machine words, and no numbers at all.
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**31 - 1, 2**63, 2**63 - 1, 2**64, -(2**63), 10**400]),
    st.sampled_from([0.0, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]),
)
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "\0", "\ud800", "<mask>", "<|mdm_mask|>", "<image>", "<|eot_id|>", "a" * 5000]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)


def mostly(good: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Now and then anything else, so that one odd value meets code that liked the others."""
    return st.integers(0, 11).flatmap(lambda chance: good if chance else JSON)


LENGTHS = mostly(st.sampled_from([1, 2, 4, 8, 16, 64, 65, 0]))
SAMPLING = {
    "preset": mostly(st.sampled_from(["rediff", "mask", "adaptive"])),
    "canvas_length": LENGTHS,
    "block_length": LENGTHS,
    "tokens_per_step": LENGTHS,
    "steps": LENGTHS,
    "refine": mostly(st.booleans()),
    "refine_fraction": mostly(st.floats(0, 1)),
    "refine_start": mostly(st.floats(0, 1)),
    "reveal_threshold": mostly(st.floats(0, 1)),
    "edit_threshold": mostly(st.floats(0, 1)),
    "end_threshold": mostly(st.floats(0, 1)),
    "extra_refine_steps": LENGTHS,
    "temperature": mostly(st.floats(0, 10)),
    "seed": mostly(st.integers(-(2**63), 2**63 - 1)),
    "cfg_scale": mostly(st.floats(0, 100)),
    "remasking": mostly(st.sampled_from(["low_confidence", "random"])),
}
GOOD_IMAGES = st.sampled_from(
    [
        {"base64": PICTURE},
        {"url": f"data:image/png;base64,{PICTURE}"},
        {"url": f" data: image/png ; base64,{PICTURE.rstrip('=')}"},
        PICTURE.replace("+", "%2B"),
    ]
)
ODD_IMAGES = st.one_of(
    st.fixed_dictionaries({}, optional={"base64": WORDS, "url": WORDS, "other": JSON}),
    st.sampled_from(["file:///etc/passwd", "http://127.0.0.1/", "data:,", "data:;base64,"]).map(
        lambda url: {"url": url}
    ),
    JSON,
)
IMAGES = st.integers(0, 4).flatmap(lambda chance: GOOD_IMAGES if chance else ODD_IMAGES)
PROMPTS = mostly(st.one_of(st.just("a b c"), WORDS))
CAPTION = st.fixed_dictionaries(
    {"image": IMAGES},
    optional={
        "prompt": PROMPTS,
        "sampling": mostly(st.fixed_dictionaries({}, optional=SAMPLING)),
        "stream": mostly(st.booleans()),
        "return_tokens": mostly(st.booleans()),
        "return_steps": mostly(st.booleans()),
        "timeout_seconds": mostly(st.just(30)),
        "priority": mostly(st.integers(-5, 5)),
        "draft": PROMPTS,
    },
)
PARTS = st.one_of(
    st.just({"type": "text", "text": "a b"}),
    ODD_IMAGES.map(lambda image: {"type": "image_url", "image_url": image}),
    st.just({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}),
    JSON,
)
MESSAGES = mostly(
    st.lists(
        st.fixed_dictionaries(
            {
                "role": mostly(st.sampled_from(["user", "user", "system", "tool"])),
                "content": mostly(st.one_of(st.lists(PARTS, min_size=1, max_size=3), WORDS)),
            }
        ),
        min_size=1,
        max_size=2,
    )
)
CHAT = st.fixed_dictionaries(
    {"messages": MESSAGES},
    optional={
        **SAMPLING,
        "model": mostly(st.just("fake")),
        "max_tokens": LENGTHS,
        "max_completion_tokens": LENGTHS,
        "n": mostly(st.just(1)),
        "stop": st.one_of(WORDS, st.lists(WORDS, max_size=6), JSON),
        "stream": mostly(st.booleans()),
        "stream_options": mostly(st.just({"include_usage": True})),
    },
)
ROUTES: dict[str, SearchStrategy[Any]] = {
    "/caption": st.one_of(CAPTION, JSON),
    "/refine": CAPTION,
    "/v1/chat/completions": CHAT,
}


def bodies(path: str, count: int) -> None:
    with door() as server:

        @examples(count)
        @given(ROUTES[path])
        def send(body: Any) -> None:
            # Python writes Infinity and NaN, which are no JSON and must be refused as such.
            server.post(path, content=json.dumps(body).encode())

        send()
        server.is_well()


@pytest.mark.parametrize("path", ROUTES)
def test_random_bodies(path: str) -> None:
    bodies(path, 40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", ROUTES)
def test_three_thousand_random_bodies(path: str) -> None:
    bodies(path, 3000)


def forms(count: int) -> None:
    fields = st.dictionaries(
        st.sampled_from(["prompt", "sampling", "stream", "priority", "timeout_seconds", "other"]),
        st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())),
        max_size=5,
    )
    cuts = st.one_of(st.none(), st.integers(0, 600))
    with door() as server:

        @examples(count)
        @given(fields, cuts, st.binary(max_size=8))
        def send(values: dict[str, bytes], cut: int | None, junk: bytes) -> None:
            parts = [b'name="image"; filename="a"\r\n\r\n' + png()]
            parts += [b'name="%b"\r\n\r\n%b' % (k.encode(), v) for k, v in values.items()]
            body = b"".join(
                b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts
            )
            body += b"--x--\r\n"
            if cut is not None:
                body = body[:cut] + junk + body[cut + len(junk) :]
            headers = {"content-type": "multipart/form-data; boundary=x"}
            server.post("/caption", content=body, headers=headers)

        send()
        server.is_well()


def test_random_forms() -> None:
    forms(60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_thousand_random_forms() -> None:
    forms(3000)
