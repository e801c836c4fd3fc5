"""The playground by keyboard, in both colour schemes, on a phone, and without motion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playground_page import Playground

    Open = Callable[..., Playground]

pytestmark = pytest.mark.system

PHONE = {"width": 360, "height": 740}
READABLE = 4.5
"""Contrast of text, WCAG 2.2 level AA."""
FOCUSED = """() => {
    const e = document.activeElement;
    const style = getComputedStyle(e);
    const shown = e.matches("#file") ? getComputedStyle(e.nextElementSibling) : style;
    const name = e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent
        || e.querySelector("img")?.alt || "";
    return [e.id || e.className || e.tagName, name.trim() !== "", shown.outlineStyle !== "none"];
}"""
COLOURS = """pairs => pairs.map(pair => pair.map(colour => {
    const probe = document.createElement("i");
    document.body.append(probe);
    probe.style.color = colour;
    const dot = document.createElement("canvas").getContext("2d");
    dot.fillStyle = getComputedStyle(probe).color;
    probe.remove();
    dot.fillRect(0, 0, 1, 1);
    return [...dot.getImageData(0, 0, 1, 1).data].slice(0, 3);
}))"""
PAIRS = [
    ("ink", "page"),
    ("ink", "surface"),
    ("ink", "sunken"),
    ("soft", "page"),
    ("soft", "surface"),
    ("soft", "sunken"),
    ("accent", "surface"),
    ("on-accent", "accent"),
    ("bad", "bad-back"),
    ("soft", "bad-back"),
    ("reveal-ink", "reveal"),
    ("revise-ink", "revise"),
]


def contrast(a: list[int], b: list[int]) -> float:
    """Of two sRGB colours, as WCAG defines it."""

    def luminance(colour: list[int]) -> float:
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in (value / 255 for value in colour)
        ]
        return sum(
            weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
        )

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_everything_is_reached_by_tab_in_order(open_page: Open) -> None:
    playground = open_page()
    page = playground.page
    playground.run(tokens_per_step="16")
    # Browsers show where the focus is once a key has been pressed.
    page.keyboard.press("Tab")
    page.locator(".skip").focus()
    order = []
    for _ in range(60):
        place, named, visible = page.evaluate(FOCUSED)
        assert named, place
        assert visible, place
        order.append(place)
        if place == "quiet copy-curl":
            break
        page.keyboard.press("Tab")
    expected = [
        "skip", "file", "preset", "tokens-per-step", "canvas-length", "prompt", "compare",
        "run", "play", "scrub", "speed", "quiet copy-caption", "quiet copy-curl",
    ]  # fmt: skip
    assert [place for place in order if place in expected] == expected
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.position") == "0"
    page.keyboard.press("Tab")
    # One stop for all of the canvas.
    assert not page.evaluate("document.activeElement.matches('.cell')")


def test_a_run_needs_no_mouse(open_page: Open) -> None:
    playground = open_page()
    page = playground.page
    page.locator("#tokens-per-step").fill("16")
    page.locator("[data-sample=rocket]").press("Enter")
    expect(page.locator("[data-sample=rocket]")).to_have_attribute("aria-pressed", "true")
    playground.wait()
    # The space bar is left for the timeline.
    play = page.locator("#play")
    page.keyboard.press("Space")
    expect(play).to_have_attribute("aria-label", "Pause")
    page.keyboard.press("Space")
    expect(play).to_have_attribute("aria-label", "Play")
    page.locator("#prompt").press("Space")
    assert page.input_value("#prompt") == " "
    expect(play).to_have_attribute("aria-label", "Play")
    page.locator("#tokens-per-step").press("Enter")
    playground.wait()


def test_what_is_announced_comes_once_a_run(open_page: Open) -> None:
    playground = open_page()
    playground.page.evaluate(
        """() => {
            window.said = [];
            const node = document.querySelector("#announcer");
            new MutationObserver(() => window.said.push(node.textContent))
                .observe(node, { childList: true });
        }"""
    )
    playground.run(tokens_per_step="4")
    expect(playground.page.locator("#announcer")).to_contain_text("done after")
    said = playground.page.evaluate("window.said")
    assert said[0] == "Captioning"
    assert len(said) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme).page
    pairs = [(f"var(--{text})", f"var(--{back})") for text, back in PAIRS]
    doubt = "color-mix(in srgb, var(--doubt-hue) 70%, var(--surface))"
    pairs.append(("var(--ink)", doubt))
    found = page.evaluate(COLOURS, pairs)
    for pair, (text, back) in zip(pairs, found, strict=True):
        assert contrast(text, back) >= READABLE, pair
    brightness = sum(page.evaluate(COLOURS, [["var(--page)"]])[0][0])
    assert (brightness > 600) == (scheme == "light")


@pytest.mark.parametrize("pair", [False, True])
def test_a_phone_scrolls_one_way_only(open_page: Open, pair: bool) -> None:
    playground = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    page = playground.page
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == PHONE["width"]
    page.set_checked("#compare", pair)
    playground.run(panels=1 + pair, tokens_per_step="8")
    assert page.evaluate(width) == PHONE["width"]
    page.locator(".cell[data-kind=token]").first.tap()
    expect(page.locator(".inspector").first).to_contain_text("position 1 of 128")
    sheet = page.locator(".inspector").first
    expect(sheet).to_be_in_viewport(ratio=1)
    assert sheet.bounding_box()["y"] > PHONE["height"] / 2  # type: ignore[index]
    too_small = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not(.unseen), select, textarea")]
            .filter(e => e.offsetParent && !e.matches(".cell, [type=range]"))
            .filter(e => Math.min(e.offsetWidth, e.offsetHeight) < 17)
            .map(e => e.id || e.className)"""
    )
    assert too_small == []
    sheet.locator(".close").tap()
    expect(sheet).to_be_hidden()


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_shows_the_effect_from_the_first_step(open_page: Open, width: int) -> None:
    phone = {"width": width, "height": 740}
    page = open_page(viewport=phone, has_touch=True, is_mobile=True).page
    page.locator("[data-sample=rocket]").tap()
    for place in ("step 1", "step 2"):
        expect(page.locator("#place")).to_contain_text(place)
        page.locator("#play").tap()  # Pauses.
        expect(page.locator("#run-picture")).to_be_in_viewport(ratio=1)
        for cell in page.locator(".canvas .cell[data-now]").all():
            expect(cell).to_be_in_viewport(ratio=1)
        page.locator("#play").tap()
    # A run that had ended when "step 2" was read, as in "step 28", was played again and paused.
    playing, over = page.locator("#play[data-playing]"), page.locator(".panel[data-over]")
    if not playing.count() and not over.count():
        page.locator("#play").tap()
    # Picture and timeline stay where the caption is read to its end.
    expect(over).to_have_count(1, timeout=60_000)
    page.locator(".caption").scroll_into_view_if_needed()
    expect(page.locator("#run-picture")).to_be_in_viewport(ratio=1)
    expect(page.locator("#play")).to_be_in_viewport(ratio=1)


def test_motion_can_be_left_out(open_page: Open) -> None:
    for wish, duration in (("no-preference", "0.25s"), ("reduce", "0s")):
        page = open_page(reduced_motion=wish).page
        seconds = "getComputedStyle(document.querySelector('.cell')).transitionDuration"
        assert page.evaluate(seconds) == duration
