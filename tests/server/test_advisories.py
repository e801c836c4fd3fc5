"""Holes that comparable servers have had: docs/security.md names the advisory for each test."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import features
from server_fakes import png, running

from rediff_model.files.image_formats.names import FORMATS
from rediff_model.files.pictures import _DECODERS
from server.images.decode import ImageError, ImageLimits, decode_image

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "rediff_model", "kernels")
IMAGE = {
    "type": "image_url",
    "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png()).decode()}"},
}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": [IMAGE]}]}


def trees() -> list[tuple[Path, ast.Module]]:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 40
    return [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in files]


def test_nothing_that_serves_unpickles_renders_templates_or_talks_to_peers() -> None:
    forbidden = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "zmq", "jinja2", "rpyc"}
    for file, tree in trees():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.partition(".")[0] for name in names} & forbidden, file


def test_no_code_or_weights_of_a_checkpoint_are_executed() -> None:
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant), file
                assert node.value.value is False, file
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in ("eval", "exec", "torch.load", "__import__"), (file, call)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": "{% for i in range(10**12) %}{% endfor %}"},
        {"chat_template_kwargs": {"tokenize": True, "chat_template": "{{ 'a' * 10**10 }}"}},
        {"prompt_embeds": "gASVAAAA", "image_embeds": "gASVAAAA"},
        {"custom_logit_processor": "gASVAAAA"},
        {"mm_processor_kwargs": {"min_pixels": 10**12, "max_pixels": 10**12}},
        {"media_io_kwargs": {"video": {"num_frames": 10**9}}},
        {"guided_regex": "(a+)+$", "structured_outputs": {"regex": "(a+)+$"}},
        {"kv_transfer_params": {"tp_size": 10**9}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"best_of": 10**9, "logit_bias": {"0": 100}, "min_tokens": 10**9},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_fields_that_broke_others_do_nothing_here(fields: dict[str, Any]) -> None:
    async with running() as server:
        plain = (await server.client.post("/v1/chat/completions", json=CHAT)).json()
        answer = await server.client.post("/v1/chat/completions", json=CHAT | fields)
        assert answer.status_code == 200
        assert answer.json()["choices"] == plain["choices"]
        # Our own routes say so.
        body = {"image": {"url": IMAGE["image_url"]["url"]}, **fields}  # type: ignore[index]
        assert (await server.client.post("/caption", json=body)).status_code == 422


@pytest.mark.anyio
@pytest.mark.parametrize("n", [2, 10**9, 2**63, 10**30])
async def test_many_answers_at_once_are_refused(n: int) -> None:
    async with running() as server:
        answer = await server.client.post("/v1/chat/completions", json=CHAT | {"n": n})
        assert answer.status_code == 400
        assert server.runner.batches == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (65, "at most 64 items"),
        (20_000, "commas and colons"),
    ],
)
async def test_many_pictures_are_refused_before_one_is_read(count: int, reason: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}] * count
    content = {"messages": [{"role": "user", "content": parts}]}
    async with running(image_hosts=["pictures.example"]) as server:
        answer = await server.client.post("/v1/chat/completions", json=content)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]["message"]


@pytest.mark.anyio
async def test_of_many_pictures_only_the_last_is_read() -> None:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}
    remote = {"type": "image_url", "image_url": {"url": "https://pictures.example/a.png"}}
    content = [*[broken, remote] * 31, IMAGE]
    async with running() as server:
        body = {"messages": [{"role": "user", "content": content}]}
        answer = await server.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert len(server.runner.pictures) == 1
        content.reverse()
        answer = await server.client.post("/v1/chat/completions", json=body)
        message = "the image is not valid base64: character 1 is not of its alphabet"
        assert answer.json()["error"]["message"] == message


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    [
        "/update_weights",
        "/update_weights_from_tensor",
        "/distserve/p2p_initialize",
        "/tokenize",
        "/invocations",
        "/v1/completions",
        "/v1/load_lora_adapter",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/shutdown",
        "/generate",
    ],
)
async def test_there_are_no_routes_that_change_the_server(path: str) -> None:
    async with running() as server:
        assert (await server.client.post(path, json={})).status_code == 404
        assert (await server.client.get(path)).status_code == 404


def test_only_seven_decoders_of_pillow_can_be_reached() -> None:
    assert FORMATS == ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    assert tuple(_DECODERS) == FORMATS
    assert all(features.check(name) for name in ("jpg", "zlib", "webp", "libtiff", "avif"))
    # Heads of formats whose decoders have overflowed or exhausted memory.
    for head in (
        b"SIMPLE  =                    T" + b" " * 3000,
        b"8BPS\0\1" + b"\0" * 100,
        b"%PDF-1.4\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0\0\0\0\0\0\0\4" + b"\0" * 300,
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"DDS |\0\0\0",
        b"icns\0\0\0\x10",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"BM",
    ):
        with pytest.raises(ImageError) as caught:
            decode_image(head, ImageLimits())
        assert caught.value.status == 415


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["../evil.py", "/etc/passwd", "a\0b", "..", "a" * 5000])
async def test_the_name_of_an_uploaded_file_means_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with running() as server:
        answer = await server.client.post("/caption", files={"image": (name, png())})
        assert answer.status_code in (200, 400)
    assert os.listdir(tmp_path) == []


@pytest.mark.anyio
@pytest.mark.timeout(60)
async def test_bodies_that_are_cheap_to_send_are_cheap_to_refuse() -> None:
    # Deep nesting, countless keys, and numbers whose reading would take the square of their length:
    # the limit on this test's time is what fails.
    bodies = (
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"image": {"base64": ""}, "priority": ' + b"9" * 1_000_000 + b"}",
        json.dumps({f"k{i}": 0 for i in range(100_000)}).encode(),
    )
    async with running() as server:
        for body in bodies:
            answer = await server.client.post("/caption", content=body)
            assert answer.status_code in (400, 422)
            assert len(answer.content) < 1000


def test_every_test_that_the_promises_name_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    for file, name in named:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M), name
