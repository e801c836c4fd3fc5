"""Runs, the timeline and the settings of the playground, in a real Chromium on a real server."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from typing import TYPE_CHECKING

import pytest
from playground_page import TURTLE, caption_of
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playground_page import Playground

    Open = Callable[..., Playground]

pytestmark = pytest.mark.system

CANVAS = 128


def test_a_run_ends_with_what_the_server_answers(open_page: Open, base: str) -> None:
    playground = open_page()
    playground.run(tokens_per_step="8")
    answer = caption_of(base, TURTLE, {"tokens_per_step": 8})
    assert playground.caption() == answer["caption"]
    assert playground.count("steps") == str(answer["steps"])
    assert playground.count("revisions") == str(answer["revisions"])
    assert playground.count("tokens") == str(answer["usage"]["caption_tokens"])
    assert float(playground.count("seconds")) > 0
    sure = playground.page.locator(".caption small")
    expect(sure).to_contain_text("Mean token probability")
    expect(sure).not_to_contain_text("Cut off")
    expect(playground.page.locator("#announcer")).to_contain_text(answer["caption"])


def test_canvas_and_prompt_reach_the_server(open_page: Open) -> None:
    playground = open_page()
    playground.page.evaluate(
        """() => {
            const send = XMLHttpRequest.prototype.send;
            XMLHttpRequest.prototype.send = function (body) {
                window.sent = [...body.entries()];
                return send.call(this, body);
            };
        }"""
    )
    playground.run(canvas_length="16", tokens_per_step="4", prompt="What is “this”?")
    sent = dict(playground.page.evaluate("window.sent"))
    assert sent["prompt"] == "What is “this”?"
    assert json.loads(sent["sampling"]) == {
        "preset": "rediff",
        "tokens_per_step": 4,
        "canvas_length": 16,
    }
    assert playground.page.locator(".canvas .cell").count() == 16
    expect(playground.page.locator(".caption small")).to_contain_text("Cut off at 16 tokens")


def test_what_is_shown_is_copied(open_page: Open) -> None:
    playground = open_page()
    playground.run(tokens_per_step="8")
    page, copy = playground.page, playground.page.locator(".copy-caption")
    clipboard = "navigator.clipboard.readText()"
    copy.click()
    expect(copy).to_have_text("Caption copied")
    assert page.evaluate(clipboard) == playground.caption()
    page.locator("#scrub").press("Home")
    expect(copy).to_be_disabled()
    for _ in range(10):
        page.locator("#scrub").press("ArrowRight")
    copy.click()
    expect(copy).to_have_text("Step 10 copied")
    text = page.evaluate(clipboard)
    assert "▒" in text
    # The canvas of that step, up to its first end.
    shown = page.evaluate("document.querySelector('.canvas').textContent")
    assert all(word in shown for word in re.findall(r"[^\s▒]+", text))
    expect(copy).to_have_text("Copy text")


def test_a_prompt_that_the_model_was_not_taught_is_told(open_page: Open) -> None:
    playground = open_page()
    told = playground.page.locator(".caption small")
    playground.run(tokens_per_step="8", canvas_length="16", prompt="caption this")
    expect(told).to_contain_text("not taught this prompt")
    playground.run(prompt=" Please describe the image in detail.")
    expect(told).not_to_contain_text("not taught")


def test_the_scrubber_shows_every_step(open_page: Open) -> None:
    playground = open_page()
    playground.run(tokens_per_step="8")
    page, scrub = playground.page, playground.page.locator("#scrub")
    steps = int(playground.count("steps"))
    scrub.press("Home")
    assert playground.cells("mask").count() == CANVAS
    scrub.press("ArrowRight")
    assert playground.cells("mask").count() == CANVAS - 8
    assert page.locator(".canvas [data-now]").count() == 8
    expect(scrub).to_have_attribute("aria-valuetext", f"step 1 of {steps}")
    page.locator("#play").focus()
    page.keyboard.press("ArrowRight")
    assert playground.count("steps").startswith("2 of ")
    counted, marked = [0], [0]
    for _ in range(2, steps):
        counted.append(int(playground.count("revisions")))
        marked.append(page.locator(".canvas s").count())
        page.keyboard.press("ArrowRight")
    assert max(marked) > 0
    # A revision of or into the end of the caption strikes no word out.
    assert all(
        later - earlier >= struck
        for earlier, later, struck in zip(counted, counted[1:], marked[1:], strict=False)
    )


def test_the_canvas_reads_as_its_caption_and_breaks_no_word(open_page: Open) -> None:
    playground = open_page()
    playground.page.set_viewport_size({"width": 420, "height": 900})
    playground.run(tokens_per_step="4")
    text = playground.page.evaluate("document.querySelector('.canvas').textContent")
    assert text.startswith(playground.caption())
    assert playground.cells("mask").count() == 0
    # Cells without a space between them stand in the same line.
    broken = playground.page.evaluate(
        """() => [...document.querySelectorAll('.canvas .cell[data-kind=token]')].filter((cell) => {
          const before = cell.previousElementSibling;
          return cell.previousSibling.data === '' && before?.dataset.kind === 'token'
            && /^\\w/.test(cell.textContent)
            && Math.abs(before.offsetTop - cell.offsetTop) > 4;
        }).map((cell) => cell.textContent)"""
    )
    assert broken == []
    total = playground.count("steps")
    playground.page.locator("#scrub").press("Home")
    playground.page.locator("#scrub").press("ArrowRight")
    assert playground.count("steps") == f"1 of {total}"


def test_play_goes_to_the_end_and_pause_stops(open_page: Open) -> None:
    playground = open_page()
    playground.run(tokens_per_step="16")
    page, play = playground.page, playground.page.locator("#play")
    expect(play).to_have_attribute("aria-label", "Play")
    play.press("Space")
    expect(play).to_have_attribute("aria-label", "Pause")
    play.press("Space")
    stopped_at = page.locator("#place").inner_text()
    page.wait_for_timeout(400)
    assert page.locator("#place").inner_text() == stopped_at
    play.press("Space")
    playground.wait()
    expect(play).to_have_attribute("aria-label", "Play")


def test_a_token_tells_its_history(open_page: Open) -> None:
    playground = open_page()
    playground.run(tokens_per_step="8")
    page = playground.page
    page.locator(".canvas .cell").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".inspector")).to_contain_text("position 2 of 128")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".inspector")).not_to_contain_text("position 2 of 128")
    page.locator(".cell[data-revised]").first.hover()
    history = page.locator(".history button")
    assert history.count() >= 2
    expect(history.first).to_have_attribute("data-kind", "reveal")
    expect(history.nth(1)).to_have_attribute("data-kind", "revise")
    step = re.search(r"step (\d+)", history.nth(1).inner_text())
    history.nth(1).click()
    assert step
    expect(page.locator("#place")).to_contain_text(f"step {step[1]} of")
    expect(page.locator(".cell.picked")).to_have_attribute("data-kind", "revise")


def test_side_by_side_runs_the_same_picture_with_and_without(open_page: Open, base: str) -> None:
    playground = open_page()
    playground.page.check("#compare")
    playground.run(panels=2, tokens_per_step="8")
    for panel, refine in enumerate((True, False)):
        answer = caption_of(base, TURTLE, {"tokens_per_step": 8, "refine": refine})
        assert playground.caption(panel) == answer["caption"]
        assert playground.count("revisions", panel) == str(answer["revisions"])
    playground.page.locator("#scrub").press("Home")
    assert [playground.cells("mask", panel).count() for panel in (0, 1)] == [CANVAS, CANVAS]


def test_stop_ends_a_run_and_keeps_its_steps(open_page: Open) -> None:
    playground = open_page()
    playground.page.fill("#tokens-per-step", "1")
    playground.page.click("#run")
    expect(playground.page.locator("#timeline")).to_be_visible()
    playground.page.click("#run")
    expect(playground.page.locator(".said")).to_contain_text("Stopped")
    expect(playground.page.locator("#run")).to_have_text("Caption the picture")
    assert playground.page.locator(".canvas .cell").count() == CANVAS


@pytest.mark.parametrize("chosen", ["sample", "small file", "large file"])
def test_the_curl_command_works(open_page: Open, tmp_path: Path, chosen: str) -> None:
    playground = open_page()
    page = playground.page
    name = 'it\'s "a" picture; really.png'
    # Bytes behind a PNG's end make it large and change nothing.
    picture = TURTLE + bytes(300_000 if chosen == "large file" else 0)
    (tmp_path / name).write_bytes(picture)
    if chosen != "sample":
        page.set_input_files("#file", tmp_path / name)
    playground.run(tokens_per_step="8", canvas_length="64", prompt='@what\'s <this> "here"?')
    page.click(".copy-curl")
    expect(page.locator("#curl")).to_be_visible()
    expect(page.locator("#curl-note")).to_contain_text("Copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command == page.input_value("#curl-text")
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout)["caption"] == playground.caption()


def test_presets_are_those_of_the_server(open_page: Open, base: str) -> None:
    with urllib.request.urlopen(f"{base}openapi.json") as answer:
        schemas = json.load(answer)["components"]["schemas"]
    playground = open_page()
    shown = playground.page.locator("#preset option").all_inner_texts()
    assert shown == schemas["SamplingOptions"]["properties"]["preset"]["anyOf"][0]["enum"]
    with urllib.request.urlopen(f"{base}version") as answer:
        assert playground.page.input_value("#preset") == json.load(answer)["preset"]
    playground.page.select_option("#preset", "mask")
    playground.run(tokens_per_step="16")
    assert playground.count("revisions") == "0"


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_can_be_dropped_and_pasted(open_page: Open, event: str) -> None:
    playground = open_page()
    page = playground.page
    page.evaluate(
        """([kind, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
            const event = kind === "drop"
                ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
            document.body.dispatchEvent(event);
        }""",
        [event, list(TURTLE)],
    )
    name = {"drop": "mine.png", "paste": "pasted.png"}[event]
    expect(page.locator("#file-name")).to_contain_text(name)
    expect(page.locator(".samples [aria-pressed=true]")).to_have_count(0)
    playground.run(tokens_per_step="16")
