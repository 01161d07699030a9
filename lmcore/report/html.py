"""Web pages that stand alone: no network, no script; light or dark, at any width, and on paper."""

import html
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["STYLE", "Markup", "card", "facts_list", "page", "table"]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --muted: #5c6675; --line: #e1e6ee; --paper: #f6f7fa; --card: #fff;
  --blue: #2a6fbb; --orange: #d95f02; --grey: #9aa5b4; --good: #1a7f4b; --good-soft: #e4f4ea; --bad: #c0292f;
  --bad-soft: #fbe6e6; --alarm: #c0292f; --note: #0d7288; --mark: #eaf2fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --muted: #97a3b4; --line: #2c3542; --paper: #11161d;
  --card: #19202a; --blue: #6cabf0; --orange: #ff9a4d; --grey: #6b7889; --good: #5fd08f; --good-soft: #14301f;
  --bad: #ff7b7b; --bad-soft: #3a1a1d; --note: #63c5da; --mark: #1d2b3b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word; }
main { max-width: 1200px; margin: 0 auto; padding: 36px 24px 64px; }
.kicker { color: var(--muted); font-size: 12px; letter-spacing: .1em; text-transform: uppercase; margin: 0 0 10px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 8px; letter-spacing: -.01em; text-wrap: balance; }
h2 { font-size: 18px; margin: 40px 0 4px; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 0 0 8px; color: var(--muted); font-weight: 600; }
.lead { color: var(--muted); margin: 0 0 14px; max-width: 90ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 18px 20px; margin: 14px 0;
  overflow-x: auto; break-inside: avoid; }
.card img { width: 100%; border-radius: 6px; display: block; background: #fff; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 22px; margin: 0; font-size: 13.5px; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 40px; color: var(--muted); font-size: 12.5px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { color: var(--muted); font-size: 12px; line-height: 1.3; font-weight: 600; text-align: right;
  vertical-align: bottom; padding: 8px 6px; }
td { border-top: 1px solid var(--line); padding: 7px 6px; text-align: right; vertical-align: top; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, .text { text-align: left; white-space: normal; }
th:first-child, td:first-child { padding-left: 0; min-width: 90px; }
th:last-child, td:last-child { padding-right: 0; }
td small { display: block; color: var(--muted); font-size: 12px; }
tr.section td { border-top: 0; padding: 18px 0 5px; font-weight: 650; }
tr.section:first-child td { padding-top: 8px; }
@media (max-width: 1000px) {
  table, tbody, tr, td { display: block; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tr { padding: 9px 0; border-top: 1px solid var(--line); }
  tr:first-child, tr.section, tr.section + tr { border-top: 0; }
  td, td.text { border: 0; padding: 2px 0; display: flex; gap: 18px; justify-content: space-between; text-align: right;
    white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-name); color: var(--muted); font-weight: 400; text-align: left; flex: none;
    max-width: 55%; }
  td:first-child { display: block; font-size: 14.5px; font-weight: 650; }
  td:first-child::before { content: none; }
  td small { font-weight: 400; } td:empty { display: none; }
  tr.section, tr.section td { padding-bottom: 0; }
}
@media (max-width: 640px) { main { padding: 18px 14px 40px; } h1 { font-size: 20px; }
  .card { padding: 14px; } .card > svg, .card > img { min-width: 620px; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: 8px; } }
@media print { :root { color-scheme: light; } body { background: #fff; font-size: 12px; } main { padding: 0;
  max-width: none; } h2 { break-after: avoid; } .card { border-color: #ccc; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
"""What all pages share. Colours are variables; --alarm lies under white text, so it is the same in light and dark."""


class Markup(str):
    """Text that is HTML already, which `table` and `facts_list` do not escape again."""


def page(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: plain text for the window.
        parts: HTML of its content, in order.
        style: CSS of this page alone, after `STYLE`.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def card(inner: str, *, heading: str = "", kind: str = "") -> str:
    """Return a framed section.

    Args:
        inner: HTML of its content.
        heading: plain text above it.
        kind: further class for the page's own CSS.
    """
    above = f"<h3>{html.escape(heading)}</h3>" if heading else ""
    return f'<section class="{" ".join(filter(None, ("card", kind)))}">{above}{inner}</section>'


def facts_list(facts: Mapping[str, str]) -> str:
    """Return names and values as a list, in a card."""
    rows = (f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in facts.items())
    return card(f"<dl>{''.join(rows)}</dl>")


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    row_classes: Sequence[str] = (),
    column_classes: Sequence[str] = (),
    sections: Mapping[int, str] | None = None,
) -> str:
    """Return a table: columns where there is room for them, one block for each row where there is not.

    Args:
        headings: names of the columns.
        rows: texts of the cells, row by row.
        row_classes: a class for each row; none may be given.
        column_classes: a class for each column; `text` is set to the left, and broken over lines.
        sections: index of a row -> a heading over all columns that stands before it.
    """
    names = [html.escape(name) for name in headings]
    kinds = [_class(kind) for kind in column_classes] or [""] * len(names)
    head = "".join(f"<th{kind}>{name}</th>" for name, kind in zip(names, kinds, strict=True))
    body = []
    for number, (row, row_kind) in enumerate(zip(rows, row_classes or [""] * len(rows), strict=True)):
        if sections and number in sections:
            body.append(f'<tr class="section"><td colspan="{len(names)}">{_escape(sections[number])}</td></tr>')
        cells = zip(row, names, kinds, strict=True)
        shown = "".join(f'<td{kind} data-name="{name}">{_escape(text)}</td>' for text, name, kind in cells)
        body.append(f"<tr{_class(row_kind)}>{shown}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _escape(text: str) -> str:
    return text if isinstance(text, Markup) else html.escape(text)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
