"""The page in a real browser: both texts, where they part, the logits, and the verdict."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmcore.config import SampleConfig
from parity.serve.verdict import Check
from tests.parity.serve.conftest import Twins, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Open = Callable[..., Page]

ASKED = {"prompt": "the ", "max_tokens": 24, "temperature": 0.9, "top_k": 12, "top_p": 0.95, "min_p": 0.01, "seed": 3}


def visit(open_page: "Open", url: str, **options: Any) -> "Page":
    page = open_page(**options)
    page.goto(url)
    page.wait_for_selector("#facts:not(:empty)")
    page.wait_for_selector(".verdict:not(.checking)")
    return page


def generate(page: "Page", **fields: object) -> None:
    """Fill fields by their ids, press the button, and wait for the end."""
    for name, value in (ASKED | fields).items():
        page.fill(f"#{name}", str(value))
    page.click("#generate")
    page.wait_for_selector("#status:not(:empty)", state="attached")
    page.wait_for_selector("html:not(.busy)")


def expected(twins: Twins, **fields: Any) -> list:
    served, lockstep = twins
    options = {name: value for name, value in (ASKED | fields).items() if name != "prompt"}
    return list(lockstep.compare(served.tokenizer.encode_prompt("the "), SampleConfig(**options), ()))


def column(page: "Page", framework: str) -> str:
    return f".twin[data-twin='{framework}']"


def test_both_columns_stream_and_equal_texts_are_said_to_be_equal(url: str, twins: Twins, open_page: "Open"):
    page = visit(open_page, url)
    generate(page)
    found = expected(twins)
    text = "".join(position.choices[0].text for position, _ in found)
    for framework, package in (("jax", "jaxlm"), ("torch", "torchlm")):
        assert page.text_content(f"{column(page, framework)} .text") == text
        assert page.locator(f"{column(page, framework)} .token").count() == len(found)
        stats = page.text_content(f"{column(page, framework)} .stats")
        assert re.fullmatch(rf"{package} · {len(found)} tokens · [\d.,]+ tokens/s", stats)
    assert page.text_content("#result") == f"Equal to the end: both twins wrote the same {len(found)} tokens, seed 3."
    assert page.get_attribute("#result", "class") == "result equal"
    assert page.locator(".token.first, .token.after").count() == 0
    assert 0 < float(page.text_content("#difference")) < 1e-4
    assert f"over the {len(found)} positions" in page.text_content("#difference-hint")


def test_a_fault_in_one_twin_is_marked_at_the_first_token_that_differs(
    url: str, twins: Twins, perturbed: Callable[[str, float], None], open_page: "Open"
):
    perturbed("layers.1.mlp.down_proj.kernel", 1.3)
    page = visit(open_page, url)
    generate(page)
    found = expected(twins)
    first = found[-1][1].first_difference
    assert first is not None
    assert 0 < first < len(found) - 1
    texts = [twins[0].texts.text_of(choice.token.token) for choice in found[first][0].choices]
    assert page.text_content("#result") == (
        f'Token {first + 1} is the first that differs: JAX "{texts[0]}", PyTorch "{texts[1]}". Seed 3.'
    )
    assert page.get_attribute("#result", "class") == "result unequal"
    for framework in ("jax", "torch"):
        tokens = page.locator(f"{column(page, framework)} .token")
        marks = [
            "first" if "first" in kind.split() else "after" if "after" in kind.split() else ""
            for kind in tokens.evaluate_all("all => all.map(e => e.className)")
        ]
        assert marks == [""] * first + ["first"] + ["after"] * (len(marks) - first - 1)
    assert float(page.text_content("#difference")) > 1e-2
    assert f"over the {first + 1} positions" in page.text_content("#difference-hint")


def test_a_token_that_is_pointed_at_is_marked_in_both_and_shows_its_alternatives(
    url: str, twins: Twins, open_page: "Open"
):
    page = visit(open_page, url)
    generate(page)
    page.hover(f"{column(page, 'jax')} .token >> nth=4")
    assert page.locator(".token.beside").count() == 1
    beside = "e => [...e.parentElement.children].filter(c => c.classList.contains('token')).indexOf(e)"
    assert page.eval_on_selector(f"{column(page, 'torch')} .token.beside", beside) == 4
    rows = page.locator("#alternatives li code").all_text_contents()
    top = expected(twins)[4][0].choices[0].token.top
    assert rows[:5] == [twins[0].texts.text_of(token).replace(" ", "␣") for token, _ in top]
    page.hover("#model")
    assert page.locator(".token.beside").count() == 0


def test_the_keyboard_starts_stops_and_reads(url: str, twins: Twins, open_page: "Open"):
    page = visit(open_page, url)
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#status:not(:empty)", state="attached")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#alternatives")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.twin').dataset.twin") == "torch"
    step, starts = twins[1].slots[0].step, []

    def stopping(*arguments: Any) -> Any:
        starts.append(1)
        return step(*arguments)

    twins[1].slots[0].step = stopping
    try:
        page.fill("#max_tokens", "40")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("html.busy")
        page.keyboard.press("Escape")
        page.wait_for_selector("html:not(.busy)")
    finally:
        twins[1].slots[0].step = step
    assert page.is_hidden("#notice")
    assert "Equal to the end" not in page.text_content("#result") or len(starts) == 40


def test_the_verdict_is_the_checks_own(twins: Twins, run: Path, tmp_path: Path, open_page: "Open"):
    check = Check([str(run), "--rungs", "1", "2", "--dtype", "float32"], tmp_path, None, "rungs 1 and 2")
    with serving(twins, check) as url:
        page = open_page()
        page.goto(url)
        page.wait_for_selector("#verdict-text:has-text('Checking…')")
        page.wait_for_selector("#verdict-scope:has-text('rungs 1 and 2')")
        assert page.is_hidden("#verdict-report")
        page.wait_for_selector(".verdict.passed", timeout=60_000)
        words = page.text_content("#verdict-text")
        assert words == check.outcome()["verdict"]
        assert f"{check.outcome()['comparisons']} comparisons" in page.text_content("#verdict-scope")
        with page.expect_popup() as opened:
            page.click("#verdict-report a")
        assert opened.value.text_content("#verdict") == words
        background = "e => getComputedStyle(e).borderRadius"
        assert opened.value.eval_on_selector(".verdict", background) == "16px", "its style is allowed"


def test_without_a_check_the_page_claims_nothing(url: str, open_page: "Open"):
    page = visit(open_page, url)
    assert page.text_content("#verdict-text") == "The ladder was not climbed: --check none."
    assert page.is_hidden("#verdict-report")
    assert page.text_content("#verdict-sign") == "–"


@pytest.fixture
def hostile(tmp_path: Path, twins: Twins) -> Iterator[str]:
    """A server whose model and whose verdict have names that are HTML."""
    served, lockstep = twins
    name, served.name = served.name, "<img src=x onerror=document.title='owned'>"
    check = Check([str(tmp_path / "<img src=x onerror=document.title=1>")], tmp_path, None, "<b>all</b>")
    with serving((served, lockstep), check) as url:
        yield url
    served.name = name


def test_text_of_others_is_never_read_as_html(hostile: str, open_page: "Open"):
    page = visit(open_page, hostile)
    page.wait_for_selector(".verdict.error")
    assert "<img src=x onerror=document.title=1>" in page.text_content("#verdict-text")
    assert page.text_content("#model") == "<img src=x onerror=document.title='owned'>"
    generate(page, prompt="<b>the</b>")
    assert page.locator("main img, main b, main script").count() == 0
    assert page.title() != "owned"


def test_what_is_refused_is_said(url: str, open_page: "Open"):
    page = visit(open_page, url)
    generate_button = page.locator("#generate")
    page.fill("#prompt", "the " * 20)
    generate_button.click()
    page.wait_for_selector("#notice:has-text('expected at most 48')")
    assert page.text_content("#result") == "Nothing was generated."
    page.errors.clear()


@pytest.mark.parametrize("width", [320, 400, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_any_width_in_both_themes(url: str, open_page: "Open", width: int, dark: bool):
    page = visit(open_page, url, width=width, dark=dark)
    generate(page)
    page.hover(f"{column(page, 'torch')} .token >> nth=9")
    assert page.is_visible("#alternatives")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    red, green, blue = re.findall(r"\d+", page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor"))
    assert (int(red) + int(green) + int(blue) < 384) is dark
