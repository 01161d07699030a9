"""A page escapes what it is given, and its tables name every cell, to be read where columns have no room."""

import re

import pytest

from lmcore.report.html import Markup, card, facts_list, page, table


def test_every_cell_has_its_columns_name_and_nothing_is_markup():
    text = table(["implementation", "a < b"], [["<one>", "1"], ["two & three", '"']], row_classes=["", "bad"])
    assert re.findall(r'<td data-name="([^"]*)">([^<]*)</td>', text) == [
        *(("implementation", "&lt;one&gt;"), ("a &lt; b", "1")),
        *(("implementation", "two &amp; three"), ("a &lt; b", "&quot;")),
    ]
    assert text.count("<tr>") == 2
    assert text.count('<tr class="bad">') == 1
    assert table(["a"], [["x"]], column_classes=["text"]).count('class="text"') == 2, "heading and cell"


def test_a_row_of_another_length_is_a_mistake():
    with pytest.raises(ValueError, match="argument"):
        table(["a", "b"], [["x"]])


def test_a_section_heads_the_rows_that_follow_and_markup_is_left_as_it_is():
    text = table(["a", "b"], [["1", Markup("<i>2</i>")], ["3", "4"]], sections={1: "more & more"})
    assert '<td data-name="b"><i>2</i></td></tr><tr class="section"><td colspan="2">more &amp; more</td></tr>' in text


def test_a_page_is_whole_and_its_facts_are_escaped():
    text = page("a < b", [card("<p>x</p>", heading="c & d", kind="wide"), facts_list({"<n>": "<v>"})], style="i {}")
    assert "<title>a &lt; b</title>" in text
    assert '<section class="card wide"><h3>c &amp; d</h3><p>x</p></section>' in text
    assert "<dt>&lt;n&gt;</dt><dd>&lt;v&gt;</dd>" in text
    assert text.index("i {}</style>") > text.index(":root")
    assert text.startswith("<!doctype html>")
    assert text.endswith("</html>\n")
