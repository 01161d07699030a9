"""A benchmark's page: every implementation, bars as long as the medians, nothing fetched."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parity.bench.page import page, plot


def test_a_page_shows_every_side_and_fetches_nothing(report: Callable, measure: Callable):
    text = page(report(measure("jaxlm", [1.0, 2.0]), measure("torchlm", [2.0, 2.0])))
    assert "&lt;one&gt; &amp; two" in text
    assert text.count("<tr>") == text.count("</tr>") == 3
    assert not any(word in text for word in ("http:", "https:", "url(", "<script", "src="))


LAYOUT = """({
    page: document.documentElement.scrollWidth,
    cut: [...document.querySelectorAll(".card")].filter(card => card.scrollWidth > card.clientWidth).length,
    bars: [...document.querySelectorAll(".bars i")].map(bar => bar.getBoundingClientRect().width),
})"""


@pytest.mark.parametrize("width", [1200, 400])
def test_a_page_fits_its_window_and_its_bars_are_as_long_as_the_medians(
    width: int, in_browser: Callable[[str, int, str], Any], report: Callable, measure: Callable
):
    names = ("jaxlm", "torchlm", "torchlm-compiled", "transformers", "transformers-compiled")
    memory = {"rss_bytes": 2.4e9, "device_bytes": 31e9, "step_flops": 1.4e13}
    measures = [measure(name, [1e-4 * (1 + number)] * 4, **memory) for number, name in enumerate(names)]
    matmul = replace(measure("matmul", [0.005] * 4), unit="FLOP/s", what="matmul", amount=3e12)
    text = page(report(*measures, matmul))
    assert text.count("<th>share of matmul peak</th>") == 1
    layout = in_browser(text, width, LAYOUT)
    assert layout["page"] <= width
    assert layout["cut"] == 0
    longest = layout["bars"][0]
    assert longest > width / 2
    assert layout["bars"] == pytest.approx([longest / (1 + number) for number in range(5)], abs=1)
    wider = in_browser(text.replace("</style>", "table { min-width: 1300px; }</style>"), width, LAYOUT)
    assert wider["cut"] == 1, "a table that is too wide would be seen"


def test_a_plot_is_a_png_of_any_number_of_groups(report: Callable, measure: Callable, tmp_path: Path):
    groups = [replace(measure("jaxlm", [1.0, 2.0]), what=f"train {number}") for number in range(3)]
    for count, file in ((1, "one.png"), (3, "three.png")):
        plot(report(*groups[:count]), tmp_path / file)
    one, three = ((tmp_path / name).read_bytes() for name in ("one.png", "three.png"))
    assert one[:8] == three[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(three[at : at + 4], "big") for at in (16, 20))
    assert width == pytest.approx(2 * int.from_bytes(one[16:20], "big"), abs=2), "two groups side by side"
    assert height == pytest.approx(2 * int.from_bytes(one[20:24], "big"), abs=2)
