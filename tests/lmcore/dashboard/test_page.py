"""The page itself, in a browser: what the JavaScript in `static/` does."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from lmcore.dashboard import make_app
from lmcore.serve.listening import bind, server_config
from tests.lmcore.dashboard.run_folders import rows, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = '<img src=x onerror="document.title=`broken`">'
Serve = Callable[[], str]


class Server:
    """Serves a folder in a thread."""

    def __init__(self, folder: Path, port: int = 0):
        self.listener = bind("127.0.0.1", port)
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.server = uvicorn.Server(server_config(make_app(folder, None)))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.listener.close()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def two_runs(runs: Path) -> Path:
    write_run(
        runs / "first", rows(10), "train:\n  steps: 200\noptim:\n  lr: 0.1\n", sample_10="once", sample_20="twice"
    )
    write_run(runs / "second", rows(10, tokens_per_second=1000.0), "train:\n  steps: 200\noptim:\n  lr: 0.2\n")
    return runs


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    server = Server(runs)
    yield server
    server.stop()


@pytest.fixture
def show(server: Server, open_page: Callable[..., "Page"]) -> Callable[..., "Page"]:
    """Opens the dashboard, and waits until it shows everything."""

    def opened(hash_: str = "", **options: object) -> "Page":
        page = open_page(**options)
        page.goto(f"{server.url}{hash_}")
        page.wait_for_selector("#status.live")
        return page

    return opened


def lines(page: "Page") -> list[str]:
    return page.eval_on_selector_all("#chart path.line", "paths => paths.map(path => path.getAttribute('d'))")


def wait_for(page: "Page", expression: str) -> None:
    """Wait until a JavaScript expression is true; playwright's own way would need `eval`, which the page forbids."""
    end = time.monotonic() + 15
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"{expression}: still false in {page.inner_text('body')}"
        page.wait_for_timeout(50)


def legend(page: "Page") -> dict[str, str]:
    items = page.locator("#legend li")
    return {item.locator(".name").inner_text(): item.locator(".value").inner_text() for item in items.all()}


def append(run: Path, text: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text)


def test_the_curves_of_several_runs_are_drawn_over_each_other(two_runs: Path, show: Callable[..., "Page"]):
    append(two_runs / "second", rows(5, start=11))
    page = show()
    first, second = lines(page)
    assert (first.count("L"), second.count("L")) == (9, 14)
    assert page.locator("#chart svg[role=img]").get_attribute("aria-label") == "loss of 2 runs"
    assert legend(page) == {"first": "4 at step 100", "second": "3.5 at step 150"}
    colors = page.eval_on_selector_all("#chart path.line", "all => all.map(path => getComputedStyle(path).stroke)")
    assert len(set(colors)) == 2
    page.get_by_role("checkbox", name="second").uncheck()
    wait_for(page, "document.querySelectorAll('#chart path.line').length === 1")
    assert list(legend(page)) == ["first"]


def test_hovering_shows_step_and_value_of_each_run(two_runs: Path, show: Callable[..., "Page"]):
    append(two_runs / "second", '{"step": 101, "loss": 2.5}\n')
    page = show()
    box = page.locator("#chart svg[role=img]").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 16, box["y"] + 100)
    tip = page.locator("#chart .tip")
    assert tip.inner_text().split() == ["loss", "first", "step", "100", "4", "second", "step", "101", "2.5"]
    assert page.locator("#chart .hover circle").count() == 2
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    assert "step 10" in tip.inner_text()
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_a_row_that_is_appended_appears_without_losing_what_the_user_does(two_runs: Path, show: Callable[..., "Page"]):
    page = show("#run=first&metric=loss&smooth=0.5")
    page.locator("#filter").fill("fir")
    page.locator("#chart").focus()
    page.keyboard.press("End")
    assert "step 100" in page.locator("#chart .tip").inner_text()
    page.evaluate("window.kept = [document.querySelector('#runs li'), document.querySelector('#samples pre')]")
    append(two_runs / "first", rows(1, start=11)[:30])
    append(two_runs / "first", rows(1, start=11)[30:])
    wait_for(page, "document.querySelector('#legend .value').textContent.includes('step 110')")
    assert lines(page)[0].count("L") == 10
    assert page.evaluate("document.activeElement.id") == "chart"
    assert "step 100" in page.locator("#chart .tip").inner_text()
    assert page.locator("#filter").input_value() == "fir"
    assert page.locator("#runs li").count() == 1
    same = "document.querySelector('#runs li') === kept[0] && document.querySelector('#samples pre') === kept[1]"
    assert page.evaluate(same)  # what has not changed is not drawn again, so that nothing flickers


def test_a_run_appears_and_vanishes(two_runs: Path, show: Callable[..., "Page"]):
    page = show("#run=first&run=second")
    page.get_by_role("checkbox", name="first").focus()
    write_run(two_runs / "third")
    (two_runs / "second").rename(two_runs.parent / "moved")
    wait_for(page, "document.querySelector('#runs').textContent.includes('third')")
    assert page.locator("#runs .name").all_inner_texts() == ["first", "third"]
    assert page.evaluate("document.activeElement.closest('li')?.textContent.startsWith('first')")
    assert page.locator("#chart path.line").count() == 1
    (two_runs.parent / "moved").rename(two_runs / "second")
    wait_for(page, "document.querySelectorAll('#chart path.line').length === 2")


def test_the_choice_is_in_the_address_and_survives_a_reload(two_runs: Path, show: Callable[..., "Page"]):
    page = show()
    assert page.evaluate("location.hash") == ""
    page.get_by_role("checkbox", name="second").uncheck()
    page.get_by_label("Metric").select_option("tokens_per_second")
    page.get_by_label("X axis").select_option("time")
    page.get_by_label("Smoothing").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.get_by_label("log x").check()
    page.get_by_label("log y").check()
    shared = page.evaluate("location.hash")
    assert shared == "#run=first&metric=tokens_per_second&x=time&smooth=0.9&log=xy"
    page.reload()
    page.wait_for_selector("#status.live")
    for shown in (page, show(shared)):
        assert list(legend(shown)) == ["first"]
        assert shown.get_by_label("Metric").input_value() == "tokens_per_second"
        assert shown.get_by_label("X axis").input_value() == "time"
        assert shown.locator("#smooth-value").inner_text() == "0.9"
        assert shown.get_by_label("log x").is_checked()
        assert shown.get_by_label("log y").is_checked()
        assert "training time (s)" in shown.locator("#chart").inner_text()
    page.evaluate("location.hash = '#run=second'")
    wait_for(page, "document.querySelector('#legend').textContent.startsWith('second')")
    assert page.get_by_label("Metric").input_value() == "loss"


def test_an_address_that_makes_no_sense_shows_the_rest(two_runs: Path, show: Callable[..., "Page"]):
    page = show("#run=gone&run=first&metric=nothing&x=moon&smooth=7&log=zzz&sample=-1&other=%00")
    assert legend(page) == {"first": "has not logged nothing"}
    assert page.locator("#chart .message").inner_text() == "None of the chosen runs has logged nothing."


def test_names_and_texts_are_shown_as_they_are(runs: Path, show: Callable[..., "Page"]):
    name = HOSTILE.replace("/", "")
    script = "</pre><script>document.title = 'broken'</script>"
    write_run(runs / name, rows(3, **{HOSTILE: 1.0}), f"a: '{HOSTILE}'\n'{HOSTILE}': 1\n", sample_10=script)
    write_run(runs / "other", config="a: 2\n")
    (runs / "report.html").write_text("<title>&lt;img src=x onerror=&quot;document.title=1&quot;&gt;</title>")
    (runs / "&lt;i&gt; %2e%2e?#x.html").write_text("<title></title>")
    page = show(f"#metric={HOSTILE}")
    assert page.locator("#runs .name").all_inner_texts() == [name, "other"]
    page.locator("#chart").focus()
    page.keyboard.press("Home")
    assert HOSTILE in page.locator("#chart .tip").inner_text()
    assert name in page.locator("#chart .tip").inner_text()
    assert page.locator("#samples pre").inner_text() == script
    assert HOSTILE in page.locator("#configs").inner_text()
    assert '<img src=x onerror="document.title=1">' in page.locator("#reports").inner_text()
    assert page.locator("img, pre script, body script").count() == 0
    assert page.title() == f"{runs}: runs"
    with page.expect_popup() as popup:
        page.get_by_text("&lt;i&gt; %2e%2e?#x.html").first.click()
    popup.value.wait_for_load_state()
    assert popup.value.url.endswith("/reports/%26lt%3Bi%26gt%3B%20%252e%252e%3F%23x.html")
    assert popup.value.evaluate("document.contentType") == "text/html"


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows_on_a_phone(two_runs: Path, show: Callable[..., "Page"], dark: bool):
    write_run(two_runs / ("long-" * 40), config=f"a: {'x' * 300}\n", sample_10="y" * 400)
    (two_runs / f"{'report-' * 20}.html").write_text(f"<title>{'z' * 200}</title>")
    page = show(width=400, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.locator("#chart").focus()
    for key in ("Home", "End"):
        page.keyboard.press(key)
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        tip = page.locator("#chart .tip").bounding_box()
        assert tip
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= 400
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 22, 29)" if dark else "rgb(246, 247, 250)")


def test_a_finger_shows_the_values_too(two_runs: Path, show: Callable[..., "Page"]):
    page = show(width=400, has_touch=True)
    page.locator("#chart svg[role=img]").tap()
    assert "step" in page.locator("#chart .tip").inner_text()


def test_the_keyboard_alone_is_enough(two_runs: Path, show: Callable[..., "Page"]):
    page = show()
    order = []
    for _ in range(15):
        page.keyboard.press("Tab")
        name = "document.activeElement.id || document.activeElement.closest('li, pre, body').textContent.slice(0, 6)"
        order.append(page.evaluate(name))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", order
        if order[-1] in ("firsts", "log-y"):
            page.keyboard.press("Space")
        if order[-1] == "configs":
            break
    assert order[:5] == ["all", "none", "filter", "firsts", "second"]
    assert order[5:11] == ["metric", "x", "smooth", "log-x", "log-y", "chart"]
    assert page.evaluate("location.hash") == "#run=second&log=y"
    page.get_by_role("checkbox", name="first").check()
    page.locator("#chart").focus()
    page.keyboard.press("ArrowRight")
    tip = page.locator("#chart .tip")
    assert "step 10\t" in tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert "step 20\t" in tip.inner_text()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert "step 90\t" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_every_control_has_a_name(two_runs: Path, show: Callable[..., "Page"]):
    page = show()
    unnamed = """[...document.querySelectorAll('button, input, select, [tabindex]')].filter((control) => !(
      control.labels?.length || control.textContent.trim() || control.ariaLabel)).map((control) => control.outerHTML)"""
    assert page.evaluate(unnamed) == []


def test_an_empty_folder_says_which_command_makes_a_run(runs: Path, server: Server, open_page: Callable[..., "Page"]):
    page = open_page()
    page.goto(server.url)
    page.wait_for_selector("#empty")
    assert f"--run_dir {runs}/quickstart" in page.locator("#empty").inner_text()
    assert not page.locator("#panels").is_visible()
    write_run(runs / "one")
    page.wait_for_selector("#chart path.line")
    assert not page.locator("#empty").is_visible()


def test_a_metric_that_a_run_lacks_is_said(two_runs: Path, show: Callable[..., "Page"]):
    append(two_runs / "second", '{"step": 110, "valid_loss": 3}\n')
    page = show("#metric=valid_loss")
    assert legend(page) == {"first": "has not logged valid_loss", "second": "3 at step 110"}
    page.get_by_label("X axis").select_option("tokens")
    wait_for(page, "document.querySelector('#legend').textContent.includes('has no tokens')")
    page.get_by_role("button", name="None").click()
    assert page.locator("#chart .message").inner_text() == "Choose a run to see its curves."
    assert page.evaluate("location.hash").startswith("#run=&")
    page.get_by_role("button", name="All").click()
    assert len(legend(page)) == 2


def test_a_run_that_has_just_begun_has_no_rows_yet(runs: Path, show: Callable[..., "Page"]):
    (write_run(runs / "one") / "metrics.jsonl").unlink()
    assert legend(show()) == {"one": "has no rows yet"}


def test_a_value_that_is_not_finite_is_a_gap(runs: Path, show: Callable[..., "Page"]):
    write_run(runs / "one", rows(3) + '{"step": 40, "loss": null}\n' + rows(3, start=5) + "junk\n")
    page = show()
    assert [line.count("M") for line in lines(page)] == [2]
    note = page.locator("#legend .note").inner_text()
    assert note == "gaps: values that are not finite; lines left out, since they are no rows: 1"


def test_a_logarithmic_axis_leaves_out_what_is_not_positive(runs: Path, show: Callable[..., "Page"]):
    write_run(
        runs / "one", '{"step": 0, "loss": 2}\n{"step": 1, "loss": 0}\n{"step": 2, "loss": 1}\n{"step": 3, "loss": 3}\n'
    )
    page = show("#log=xy")
    assert [(line.count("M"), line.count("L")) for line in lines(page)] == [(1, 1)]
    assert "NaN" not in page.locator("#chart").inner_html()
    assert page.locator("#legend .note").inner_text() == "values of 0 or less are not shown"


def test_samples_are_shown_over_time(two_runs: Path, show: Callable[..., "Page"]):
    page = show()
    assert page.locator("#samples pre").all_inner_texts() == ["twice"]
    assert page.locator("#samples .note").inner_text() == "No samples yet: second."
    page.locator("#sample").focus()
    page.keyboard.press("ArrowLeft")
    wait_for(page, "document.querySelector('#samples pre').textContent === 'once'")
    assert page.evaluate("location.hash") == "#sample=10"
    page.keyboard.press("ArrowRight")
    wait_for(page, "document.querySelector('#samples pre').textContent === 'twice'")
    assert page.locator("#sample-step").inner_text() == "latest"
    (two_runs / "first" / "samples" / "sample-30.txt").write_text("thrice")
    wait_for(page, "document.querySelector('#samples pre').textContent === 'thrice'")


def test_config_fields_that_differ_stand_side_by_side(two_runs: Path, show: Callable[..., "Page"]):
    page = show()
    assert page.locator("#configs tr").all_inner_texts() == ["field\tfirst\tsecond", "optim.lr\t0.1\t0.2"]
    assert page.locator("#configs .note").inner_text() == "1 more field is the same in all."
    page.get_by_role("checkbox", name="second").uncheck()
    wait_for(page, "document.querySelector('#configs').textContent.startsWith('Choose two')")


def test_a_report_opens_and_runs_no_script(two_runs: Path, show: Callable[..., "Page"]):
    text = (
        "<title>Report</title><style>p { color: rgb(1, 2, 3) }</style><p>fine<script>document.title = 'broken'</script>"
    )
    (two_runs / "first" / "check.html").write_text(text)
    page = show()
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Report").click()
    report = popup.value
    report.wait_for_load_state()
    assert report.title() == "Report"
    assert report.evaluate("getComputedStyle(document.querySelector('p')).color") == "rgb(1, 2, 3)"
    assert report.evaluate("window.opener") is None
    report.close()


def test_a_server_that_ends_is_said_and_waited_for(two_runs: Path, open_page: Callable[..., "Page"]):
    server = Server(two_runs)
    page = open_page()
    page.goto(server.url)
    page.wait_for_selector("#status.live")
    server.stop()
    page.wait_for_selector("#status.lost")
    assert "does not answer" in page.locator("#status").inner_text()
    assert page.locator("#chart path.line").count() == 2
    again = Server(two_runs, server.port)
    page.wait_for_selector("#status.live")
    page.goto("about:blank")
    again.stop()
    page.errors.clear()  # type: ignore[attr-defined]


def test_many_points_are_drawn_as_about_a_thousand(runs: Path, show: Callable[..., "Page"]):
    write_run(runs / "long", rows(20_000))
    page = show()
    assert 900 < lines(page)[0].count("L") <= 1001
