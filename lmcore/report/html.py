"""A table for a web page: columns where there is room for them, one card for each row where there is not."""

import html
from collections.abc import Sequence

__all__ = ["TABLE_STYLE", "table"]

TABLE_STYLE = """
table.fit { border-collapse: collapse; width: 100%; font-size: 13px; }
table.fit th { color: var(--muted); font-size: 12px; font-weight: 600; text-align: right; vertical-align: bottom;
  padding: 8px 6px; }
table.fit td { border-top: 1px solid var(--line); padding: 7px 6px; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
table.fit th:first-child, table.fit td:first-child, table.fit .text { text-align: left; white-space: normal;
  overflow-wrap: break-word; }
table.fit th:first-child, table.fit td:first-child { padding-left: 0; min-width: 90px; }
@media (max-width: 1000px) {
  table.fit, table.fit tbody, table.fit tr, table.fit td { display: block; }
  table.fit thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table.fit tr { padding: 9px 0; border-top: 1px solid var(--line); } table.fit tr:first-child { border-top: 0; }
  table.fit td, table.fit .text { border: 0; padding: 2px 0; display: flex; gap: 18px; justify-content: space-between;
    text-align: right; white-space: normal; overflow-wrap: anywhere; }
  table.fit td::before { content: attr(data-name); color: var(--muted); font-weight: 400; text-align: left;
    flex: none; max-width: 55%; }
  table.fit td:first-child { font-size: 14.5px; font-weight: 650; } table.fit td:first-child::before { content: none; }
  table.fit td:empty { display: none; }
}
"""
"""For pages that define --muted and --line."""


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    row_classes: Sequence[str] = (),
    column_classes: Sequence[str] = (),
) -> str:
    """Return a table as HTML.

    Args:
        headings: names of the columns.
        rows: texts of the cells, row by row.
        row_classes: a class for each row; none may be given.
        column_classes: a class for each column; `text` is set to the left, and broken over lines.
    """

    names = [html.escape(name) for name in headings]
    kinds = [_class(kind) for kind in column_classes] or [""] * len(names)
    head = "".join(f"<th{kind}>{name}</th>" for name, kind in zip(names, kinds, strict=True))
    body = []
    for row, row_kind in zip(rows, row_classes or [""] * len(rows), strict=True):
        cells = zip(row, names, kinds, strict=True)
        shown = "".join(f'<td{kind} data-name="{name}">{html.escape(text)}</td>' for text, name, kind in cells)
        body.append(f"<tr{_class(row_kind)}>{shown}</tr>")
    return f'<table class="fit"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
