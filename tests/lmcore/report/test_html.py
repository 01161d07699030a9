"""A table for a page names every cell, so that it can be read where columns have no room."""

import re

import pytest

from lmcore.report.html import table


def test_every_cell_has_its_columns_name_and_nothing_is_markup():
    made = table(["side", "a < b"], [["<one>", "1"], ["two & three", '"']], row_classes=["", "bad"])
    assert re.findall(r'<td data-name="([^"]*)">([^<]*)</td>', made) == [
        *(("side", "&lt;one&gt;"), ("a &lt; b", "1")),
        *(("side", "two &amp; three"), ("a &lt; b", "&quot;")),
    ]
    assert made.count("<tr>") == 2
    assert made.count('<tr class="bad">') == 1
    assert table(["a"], [["x"]], column_classes=["text"]).count('class="text"') == 2, "heading and cell"


def test_a_row_of_another_length_is_a_mistake():
    with pytest.raises(ValueError, match="argument"):
        table(["a", "b"], [["x"]])
