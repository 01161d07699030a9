"""The page in a real browser: what it shows, what its keys do, and that text stays text."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import tokenizers

from lmcore.config import SampleConfig
from lmcore.data.tokenizer import Tokenizer
from lmcore.serve.app import Settings
from lmcore.serve.errors import ApiError
from lmcore.serve.logprobs import log_softmax
from tests.lmcore.serve.toy import CONTEXT, HEADS, Running, Toy, chat_template, expected_text, make_served, next_logits
from tests.lmcore.serve.toy import running as run_server

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Open = Callable[..., Page]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></span><script>document.title='owned'</script>&amp;字"
SLOW = 0.03
"""Seconds of a step where a test stops a text."""
LONG = {"prompt": "a", "max_tokens": 90, "temperature": 1, "seed": 3}
"""What is asked for a text that does not end by itself."""


class Reciting(Toy):
    """A model that writes the same tokens, again and again, whatever the prompt."""

    def __init__(self, tokens: Sequence[int], vocab: int = 259):
        super().__init__(vocab=vocab)
        self.text = list(tokens)
        self.begin = 0

    def prefill(self, slot: int, tokens: np.ndarray) -> np.ndarray:
        self.begin = len(tokens)
        return super().prefill(slot, tokens)

    def _logits(self, row: list[int]) -> np.ndarray:
        logits = np.zeros(self.vocab, np.float32)
        logits[self.text[(len(row) - self.begin) % len(self.text)]] = 30
        return logits


@pytest.fixture(scope="module")
def slow() -> Iterator[Running]:
    """A server that takes its time, with one slot and no queue."""
    with run_server(make_served(), Toy(count=1, delay=SLOW), waiting=0) as server:
        yield server


def visit(open_page: "Open", server: Running, **options: Any) -> "Page":
    """The page, with the facts on it."""
    page = open_page(**options)
    page.goto(server.url)
    page.wait_for_selector("#facts:not(:empty)")
    return page


def fill(page: "Page", **fields: object) -> None:
    """Fill fields by their ids."""
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))


def generate(page: "Page", **fields: object) -> None:
    """Fill fields by their ids, press the button, and wait for the end."""
    fill(page, **fields)
    page.click("#generate")
    page.wait_for_selector("#status:has-text('The text')", state="attached")
    page.wait_for_selector("html:not(.busy)")


def test_a_text_is_generated_as_by_the_api(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    assert page.text_content("#model") == "toy"
    assert page.text_content("#facts") == (
        "1,234 parameters · 2 layers · 2 heads · vocabulary 259 · context 96 · cpu · 3 slots"
    )
    generate(page, prompt="Hello", max_tokens=20, temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, seed=5)
    text, tokens, _ = expected_text(server.served, "Hello", 20, temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, seed=5)
    assert page.text_content("#output .text") == "Hello" + text
    assert page.locator("#output .token").count() == len(tokens)
    assert re.fullmatch(r"20 tokens · [\d.,]+ tokens/s · first after \d\.\d\d s · seed 5", page.text_content("#stats"))


def test_an_empty_seed_is_drawn_and_named_so_that_the_text_can_be_had_again(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    generate(page, prompt="a", max_tokens=15, temperature=1)
    first, seed = page.text_content("#output .text"), re.search(r"seed (\d+)", page.text_content("#stats"))[1]
    page.click("#generate")
    page.wait_for_selector(f"#stats:not(:has-text('{seed}'))")
    page.wait_for_selector("html:not(.busy)")
    assert page.text_content("#output .text") != first, "another seed"
    generate(page, seed=seed)
    assert page.text_content("#output .text") == first


def test_a_text_ends_before_a_stop_string_with_escapes(open_page: "Open"):
    with run_server(make_served(), Reciting(b"one\ntwo")) as server:
        page = visit(open_page, server)
        page.fill("#stop-strings", "nothing\n\\ntw")
        generate(page, prompt="", max_tokens=20)
        assert page.text_content("#output .text") == "one"


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_text_can_be_stopped(slow: Running, open_page: "Open", how: str):
    page = visit(open_page, slow)
    fill(page, **LONG)
    page.click("#generate")
    page.wait_for_selector("#output .token >> nth=2")
    assert page.is_disabled("#generate")
    page.click("#stop") if how == "button" else page.keyboard.press("Escape")
    page.wait_for_selector("html:not(.busy)")
    count = page.locator("#output .token").count()
    assert 3 <= count < 90
    assert page.is_enabled("#generate")
    assert page.is_disabled("#stop")
    assert page.is_hidden("#notice")
    page.wait_for_timeout(5000 * SLOW)
    assert page.locator("#output .token").count() == count, "nothing comes after it"
    assert slow.scheduler.active == 0, "the slot is free"


def shown(page: "Page") -> list[list[str]]:
    """Rows of the box with the alternatives."""
    rows = page.locator("#alternatives li")
    return [[row.locator("code").text_content(), row.locator("span").text_content()] for row in rows.all()]


def expected_rows(row: list[int]) -> list[list[str]]:
    """The five likeliest tokens after some others."""
    logits = next_logits(row, 259)
    order = np.argsort(-logits, kind="stable")[:5]
    percents = 100 * np.exp(log_softmax(logits)[order])
    names = [chr(token).replace(" ", "␣") for token in order]
    return [
        [name, f"{value:.1f} %" if value >= 9.95 else f"{value:#.2g} %"]
        for name, value in zip(names, percents, strict=True)
    ]


def test_a_token_that_is_pointed_at_shows_the_likeliest_ones_there(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    generate(page, prompt="Hello", max_tokens=12, temperature=0)
    assert page.is_hidden("#alternatives")
    _, tokens, _ = expected_text(server.served, "Hello", 12)
    for index in (0, 7):
        page.hover(f"#output .token >> nth={index}")
        assert page.is_visible("#alternatives")
        assert shown(page) == expected_rows([*b"Hello", *tokens[:index]])
        assert page.text_content("#alternatives .chosen code") == shown(page)[0][0], "greedy"
    page.hover("#model")
    assert page.is_hidden("#alternatives")


def test_everything_can_be_done_by_keyboard_alone(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    for _ in range(3):  # the theme, perhaps the mode, the prompt
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Control+A")
    page.keyboard.type("Hello")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "temperature"
    page.keyboard.type("0")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#status:has-text('The text')", state="attached")
    while not page.evaluate("document.activeElement.classList.contains('token')"):
        page.keyboard.press("Tab")
    _, tokens, _ = expected_text(server.served, "Hello", 40)
    steps = {"ArrowRight": 1, "ArrowLeft": 0, "End": page.locator("#output .token").count() - 1, "Home": 0}
    for key, index in steps.items():
        page.keyboard.press(key)
        assert page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == index
        if index < 2:
            assert shown(page) == expected_rows([*b"Hello", *tokens[:index]])
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "2px"
    assert page.get_attribute(".token:focus", "aria-describedby") == "alternatives"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "layer", "the tokens are one stop of the tab key"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#attended .token")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    size = page.locator("#attended .token").count()
    assert page.text_content("#cell").startswith(page.text_content(f"#attended .token >> nth={size - 2}"))


def test_every_control_has_a_label(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    unnamed = "e => !e.labels?.length && !e.textContent.trim() && !e.ariaLabel"
    assert page.eval_on_selector_all("input, select, textarea, button", f"all => all.filter({unnamed}).length") == 0


def test_attention_is_shown_for_a_layer_and_head(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    generate(page, prompt="Hello", max_tokens=5, temperature=0)
    page.select_option("#layer", "1")
    page.select_option("#head", "1")
    page.click("#look")
    page.wait_for_selector("#attended .token")
    text, _, _ = expected_text(server.served, "Hello", 5)
    assert page.text_content("#attended") == "Hello" + text
    weights = np.tril(np.random.default_rng(1).random((HEADS, 10, 10)))
    weights = (weights / weights.sum(-1, keepdims=True))[1].round(4)
    page.hover("#attended .token >> nth=6")
    given = page.eval_on_selector_all("#attended .token", "all => all.map(e => e.style.getPropertyValue('--weight'))")
    assert given == [f"{round(80 * value / weights[6].max())}%" for value in weights[6]]
    assert page.text_content("#cell").split(" attends ")[0].endswith("(6)")
    assert page.text_content("#cell").endswith(f"({weights[6].argmax()})")
    page.hover("#map", position={"x": page.locator("#map").bounding_box()["width"] * 0.25, "y": 0.85 * 380})
    assert re.search(rf"\(8\) attends {100 * weights[8, 2]:.2g}.* % to l \(2\)", page.text_content("#cell"))
    assert page.evaluate("document.getElementById('map').width") == 10
    drawn = page.evaluate("[...document.getElementById('map').getContext('2d').getImageData(0, 0, 10, 10).data]")
    np.testing.assert_allclose(np.reshape(drawn[3::4], (10, 10)), 255 * np.sqrt(np.tril(weights)), atol=1)


def test_text_of_others_is_never_read_as_html(open_page: "Open"):
    served = make_served(chat_template())
    served.name = HOSTILE[:-1]
    with run_server(served, Reciting(HOSTILE.encode())) as server:
        page = visit(open_page, server)
        assert page.text_content("#model") == HOSTILE[:-1]
        generate(page, prompt=HOSTILE[:40], max_tokens=50, temperature=0)
        assert page.text_content("#output .text") == HOSTILE[:40] + HOSTILE[:50]
        page.hover("#output .token >> nth=0")
        assert shown(page)[0] == ["<", "100.0 %"]
        page.click("#look")
        page.wait_for_selector("#attended .token")
        page.click("label:has-text('Chat')")
        generate(page, prompt=HOSTILE[:30], max_tokens=20)
        assert page.text_content(".turn.user .text") == HOSTILE[:30]
        assert page.text_content(".turn.assistant .text") == HOSTILE[:20]
        page.fill("#prompt", HOSTILE)  # too long for the context: the message has parts of the request
        page.click("#generate")
        page.wait_for_selector("#notice:has-text('The server rejects the request')")
        assert page.locator("img, span script, div script").count() == 0
        assert "owned" not in page.title().replace(HOSTILE[:-1], "")
        page.errors.clear()  # of the response with status 400


def test_a_token_that_is_a_tag_is_not_read_as_html_either(open_page: "Open"):
    words = ["<img/src=x/onerror=document.title='owned'>", "<b>", "</s>"]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<b>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    with run_server(make_served(tokenizer=Tokenizer(inner, "</s>")), Reciting([0, 1], vocab=3)) as server:
        page = visit(open_page, server)
        generate(page, prompt="<b>", max_tokens=4, temperature=0)
        assert page.locator("#output .token >> nth=0").text_content() == " " + words[0]
        page.hover("#output .token >> nth=0")
        assert shown(page)[0] == ["␣" + words[0], "100.0 %"]
        page.click("#look")
        page.wait_for_selector("#attended .token")
        assert page.locator("main img, main b, #alternatives img").count() == 0


def test_a_character_of_several_tokens_is_shown_once_it_is_complete(open_page: "Open"):
    with run_server(make_served(), Reciting("a字b".encode())) as server:
        page = visit(open_page, server)
        generate(page, prompt="", max_tokens=5, temperature=0)
        assert page.eval_on_selector_all("#output .token", "all => all.map(e => e.textContent)") == [
            *("a", "", "", "字", "b")
        ]
        page.hover("#output .token >> nth=3")
        assert page.text_content("#alternatives h3 code") == "bytes:\\x97"


def test_a_chat_has_all_of_its_messages(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    page.click("label:has-text('Chat')")
    page.fill("#system", "Be brief.")
    generate(page, prompt="Hi", max_tokens=8, temperature=0)
    served, messages = server.served, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text, _, _ = expected_text(served, served.encode_chat(messages).ids, 8, served.turn_ids)
    assert page.text_content(".turn.assistant .text") == text
    assert page.input_value("#prompt") == "", "ready for the next message"
    page.hover(".turn.assistant .token >> nth=1")
    assert len(shown(page)) == 5
    generate(page, prompt="And?", max_tokens=4)
    page.wait_for_selector(".turn.assistant >> nth=1")
    page.wait_for_selector("html:not(.busy)")
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And?"}]
    text, _, _ = expected_text(served, served.encode_chat(messages).ids, 4, served.turn_ids)
    assert page.text_content(".turn.assistant >> nth=1 >> .text") == text
    page.click("#restart")
    assert page.locator(".turn").count() == 0


def test_a_model_without_a_template_has_no_chat(slow: Running, open_page: "Open"):
    assert visit(open_page, slow).is_hidden("#modes")


def test_a_busy_server_is_asked_again_after_a_while(slow: Running, open_page: "Open"):
    page = visit(open_page, slow)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(httpx.post, f"{slow.url}/v1/completions", json=LONG, timeout=60)
        while not slow.scheduler.active:
            page.wait_for_timeout(10)
        fill(page, **(LONG | {"max_tokens": 5}))
        page.click("#generate")
        page.wait_for_selector("#notice:has-text('The server is busy with other requests.Trying again in')")
        page.wait_for_selector("#status:has-text('The text')", state="attached")
        assert page.is_hidden("#notice")
        assert other.result().status_code == 200
    assert page.locator("#output .token").count() == 5
    assert all("429" in error for error in page.errors)
    page.errors.clear()


def test_escape_ends_the_wait_for_a_busy_server(slow: Running, open_page: "Open"):
    page = visit(open_page, slow)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(httpx.post, f"{slow.url}/v1/completions", json=LONG, timeout=60)
        while not slow.scheduler.active:
            page.wait_for_timeout(10)
        page.click("#generate")
        page.wait_for_selector("#notice:has-text('Trying again')")
        page.keyboard.press("Escape")
        page.wait_for_selector("html:not(.busy)")
        assert page.is_hidden("#notice")
        assert page.locator("#output .token").count() == 0
        other.result()
    page.errors.clear()


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(open_page: "Open"):
    with run_server(make_served(), settings=Settings(api_key="the key")) as server:
        page = open_page()
        page.goto(server.url)
        page.wait_for_selector("#key-form:not([hidden])")
        assert "asks for an API key" in page.text_content("#notice")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", "the key")
        page.click("#key-form button")
        page.wait_for_selector("#facts:not(:empty)")
        assert page.is_hidden("#key-form")
        assert page.is_hidden("#notice")
        generate(page, **(LONG | {"max_tokens": 3}))
        assert page.locator("#output .token").count() == 3
        stored = "[Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
        assert page.evaluate(stored) == [["the key"], [], ""]
        page.reload()
        page.wait_for_selector("#facts:not(:empty)")
        assert all("401" in error for error in page.errors)
        page.errors.clear()


def test_what_the_server_rejects_is_said_in_its_words(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    page.fill("#prompt", "x" * CONTEXT)
    page.click("#generate")
    page.wait_for_selector("#notice:has-text('expected at most 96')")
    page.fill("#temperature", "-1")
    page.click("#generate")
    assert page.evaluate("document.activeElement.id") == "temperature", "the browser checks ranges"
    assert page.locator("input:invalid").count() == 1
    assert all("400" in error for error in page.errors)
    page.errors.clear()


def test_a_server_that_ends_or_is_gone_is_named(open_page: "Open"):
    with run_server(make_served(), Toy(delay=SLOW)) as server:
        page = visit(open_page, server)
        fill(page, **LONG)
        page.click("#generate")
        page.wait_for_selector("#output .token")
        server.scheduler.abort(ApiError(503, "the server is stopping"))
        page.wait_for_selector("#notice:has-text('The server stopped: the server is stopping')")
        assert page.locator("#output .token").count() > 0, "what there is stays"
    page.click("#generate")
    page.wait_for_selector("#notice:has-text('The server does not answer. Is it still running?')")
    page.errors.clear()


def test_the_model_gives_nan(open_page: "Open"):
    slots = Toy()
    with run_server(make_served(), slots) as server:
        page = visit(open_page, server)
        slots.nan = True
        page.click("#generate")
        page.wait_for_selector("#notice:has-text('NaN')")
        page.errors.clear()


def luminance(page: "Page", selector: str, name: str) -> float:
    """Of a colour, from 0 to 255, roughly."""
    colour = page.eval_on_selector(selector, f"e => getComputedStyle(e).{name}")
    return float(np.mean([float(number) for number in re.findall(r"[\d.]+", colour)[:3]]))


def test_colours_follow_the_system_or_the_button(server: Running, open_page: "Open"):
    for dark in (False, True):
        page = visit(open_page, server, dark=dark)
        assert (luminance(page, "body", "backgroundColor") < 128) is dark
        assert (luminance(page, "body", "color") > 128) is dark
    page.click("#theme")
    assert page.text_content("#theme") == "Theme: light"
    assert luminance(page, "body", "backgroundColor") > 128
    page.reload()
    assert luminance(page, "body", "backgroundColor") > 128, "remembered"
    page.click("#theme")
    page.click("#theme")
    assert page.text_content("#theme") == "Theme: system"
    assert luminance(page, "body", "backgroundColor") < 128


@pytest.mark.parametrize("width", [320, 400, 1200])
@pytest.mark.parametrize("mode", ["Text", "Chat"])
def test_the_page_fits_any_width(server: Running, open_page: "Open", width: int, mode: str):
    page = visit(open_page, server, width=width)
    page.click(f"label:has-text('{mode}')")
    generate(page, prompt="W" * 40, max_tokens=20, temperature=0)
    page.click("#look")
    page.wait_for_selector("#attended .token")
    page.hover("#output .token >> nth=19")
    assert page.is_visible("#alternatives")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_defaults_are_the_runs_own_and_leave_room_for_the_prompt(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    own = SampleConfig()
    assert page.input_value("#prompt") == own.prompt
    values = [float(page.input_value(f"#{name}")) for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens")]
    assert values == [own.temperature, own.top_p, own.top_k, own.min_p, CONTEXT / 2]


def test_a_token_that_is_pointed_at_has_its_own_colour_wherever_it_stands(server: Running, open_page: "Open"):
    page = visit(open_page, server)
    generate(page, prompt="Hello", max_tokens=6, temperature=0)
    colours = set()
    for index in range(4):
        page.hover(f"#output .token >> nth={index}")
        colours.add(page.eval_on_selector(f"#output .token >> nth={index}", "e => getComputedStyle(e).backgroundColor"))
    assert len(colours) == 1


def test_a_text_that_ends_at_once_has_no_tokens_but_a_seed(open_page: "Open"):
    served = make_served()
    with run_server(served, Reciting([served.tokenizer.eot_id])) as server:
        page = visit(open_page, server)
        generate(page, seed=4)
        assert page.text_content("#stats") == "0 tokens · seed 4"
        assert page.text_content("#output .text") == SampleConfig().prompt
