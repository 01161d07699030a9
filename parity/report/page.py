"""The report as one web page that stands alone: no network, no script, readable in light and dark and on paper."""

import html
from collections.abc import Iterator, Sequence

from parity.check.result import Result
from parity.difference import tolerance
from parity.report.charts import gradient_bars, heat_map, loss_curves

__all__ = ["page"]

TITLES = {
    0: "Each twin against itself",
    1: "Batches and token ids",
    2: "Weights there and back",
    3: "Activations, layer by layer",
    4: "Logits and loss",
    5: "Gradients",
    6: "Optimizer update",
    7: "Training trajectory",
    8: "Cached decoding",
    9: "A third implementation",
    10: "Save, restore, go on",
    11: "Ways of computing",
}
SHORT_TITLES = (
    *("repeats", "batches", "weights", "activations", "outputs", "gradients", "update", "training", "decoding"),
    *("third", "restart", "ways"),
)
SHORT = dict(zip(TITLES, SHORT_TITLES, strict=True))

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --muted: #5c6675; --line: #e1e6ee; --paper: #f6f7fa; --card: #fff;
  --reference: #2a6fbb; --port: #d95f02; --good: #1a7f4b; --good-soft: #e4f4ea; --bad: #c0292f; --bad-soft: #fbe6e6;
  --note: #0d7288; --noise: #9aa5b4; --cell-ink: #16324f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --muted: #97a3b4; --line: #2c3542; --paper: #11161d;
  --card: #19202a; --reference: #6cabf0; --port: #ff9a4d; --good: #5fd08f; --good-soft: #14301f; --bad: #ff7b7b;
  --bad-soft: #3a1a1d; --note: #63c5da; --noise: #6b7889; --cell-ink: #e6f0fb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 36px 24px 64px; }
.kicker { color: var(--muted); font-size: 12px; letter-spacing: .1em; text-transform: uppercase; margin: 0 0 10px; }
.verdict { border-radius: 16px; padding: 26px 30px; border: 1px solid; display: flex; gap: 22px; align-items: center; }
.verdict.good { background: var(--good-soft); border-color: color-mix(in srgb, var(--good) 35%, transparent); }
.verdict.bad { background: var(--bad-soft); border-color: color-mix(in srgb, var(--bad) 35%, transparent); }
.mark { flex: none; width: 54px; height: 54px; border-radius: 50%; display: grid; place-items: center; color: #fff;
  font-size: 28px; font-weight: 700; }
.good .mark { background: #1a7f4b; } .bad .mark { background: #c0292f; }
h1 { font-size: 25px; line-height: 1.25; margin: 0; letter-spacing: -.01em; text-wrap: balance; }
.verdict p { margin: 6px 0 0; color: var(--muted); overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 4px; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 0 0 8px; color: var(--muted); font-weight: 600; }
.lead { color: var(--muted); margin: 0 0 14px; max-width: 74ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px; margin: 14px 0;
  overflow-x: auto; break-inside: avoid; }
.card.table { padding: 4px 20px 12px; break-inside: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; color: var(--muted); font-weight: 600; font-size: 12px; padding: 12px 10px 8px; }
td { padding: 7px 10px; border-top: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
tr.rung td { border-top: 0; padding: 18px 0 5px; font-weight: 650; } tr.rung:first-child td { padding-top: 8px; }
tr.rung span { display: inline-grid; place-items: center; width: 22px; height: 22px; border-radius: 7px;
  margin-right: 9px;  background: color-mix(in srgb, var(--muted) 16%, transparent); font-size: 12px; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { display: block; color: var(--muted); font-size: 12px; }
td.where { color: var(--muted); font-size: 12.5px; overflow-wrap: anywhere; max-width: 250px; }
.badge { display: inline-block; padding: 1px 9px; border-radius: 99px; font-size: 12px; font-weight: 650; }
.badge.pass { color: var(--good); background: var(--good-soft); } .badge.FAIL { color: #fff; background: #c0292f; }
.badge.reported, .badge.skipped { color: var(--note); background: color-mix(in srgb, var(--note) 14%, transparent); }
.steps { display: grid; grid-template-columns: max-content repeat(12, minmax(0, 1fr)); gap: 6px; align-items: center;
  font-size: 13px; }
.steps b { font-weight: 600; padding-right: 10px; }
.steps small { color: var(--muted); text-align: center; font-size: 11.5px;
  line-height: 1.25; padding-bottom: 2px; align-self: end; }
@media (max-width: 760px) { .steps small span { display: none; } }
.steps i { font-style: normal; font-weight: 700; text-align: center; border-radius: 8px; padding: 5px 0; }
.steps .pass { color: var(--good); background: var(--good-soft); } .steps .FAIL { color: #fff; background: #c0292f; }
.steps .reported, .steps .skipped { color: var(--note); background: color-mix(in srgb, var(--note) 14%, transparent); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 22px; margin: 0; font-size: 13.5px; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; }
svg.small { font-size: 11.5px; }
svg text { fill: var(--muted); } svg .name { fill: var(--ink); font-size: 11.5px; }
svg .value { fill: var(--muted); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .cell.within { fill: var(--reference); } svg .cell.beyond { fill: #c0292f; }
svg .value.within { fill: var(--cell-ink); } svg .value.beyond { fill: #fff; font-weight: 700; }
svg .bar.within { fill: var(--reference); fill-opacity: .8; } svg .bar.beyond { fill: #c0292f; }
svg .grid { stroke: var(--line); } svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .reference { stroke: var(--reference); stroke-width: 5; stroke-opacity: .4; }
svg .port { stroke: var(--port); stroke-width: 1.6; }
svg .noise { stroke: var(--noise); stroke-width: 1.6; } svg .deviation { stroke: var(--ink); stroke-width: 1.6; }
svg .band { fill: var(--noise); fill-opacity: .28; }
svg .limit { stroke: #c0292f; stroke-dasharray: 4 4; } svg .limit-label { fill: var(--bad); font-size: 11px; }
footer { margin-top: 40px; color: var(--muted); font-size: 12.5px; }
@media print { :root { color-scheme: light; } body { background: #fff; font-size: 12px; } main { padding: 0;
  max-width: none; } h2 { break-after: avoid; } .card { border-color: #ccc; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
@media (max-width: 640px) { main { padding: 18px 14px 40px; } .verdict { padding: 18px; gap: 14px; }
  h1 { font-size: 20px; } }
"""


def page(ok: bool, verdict: str, subject: str, results: Sequence[Result], facts: dict[str, str], compared: str) -> str:
    """Return the whole page of a `parity.report.report.Report`.

    Args:
        ok: whether the two are the same model.
        verdict: one sentence that says so.
        subject: what was checked.
        results: all lines.
        facts: what else is to be known, in words.
        compared: the two implementations.
    """
    good = "good" if ok else "bad"
    dtypes = list(dict.fromkeys(result.dtype for result in results))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>parity: {'same model' if ok else 'they differ'}</title>",
        f"<style>{STYLE}</style></head><body><main>",
        f'<p class="kicker">parity · {html.escape(compared)}</p>',
        f'<section class="verdict {good}"><div class="mark" aria-hidden="true">{"✓" if ok else "✕"}</div>',
        f'<div><h1 id="verdict">{html.escape(verdict)}</h1><p>{html.escape(subject)}</p></div></section>',
    ]
    if facts:
        parts.append(_facts({n: v for n, v in facts.items() if n in ("model", "optimizer", "text", "left out")}))
    parts.append(_overview(results, dtypes))
    parts.append("<h2>The ladder</h2>")
    parts.append(
        '<p class="lead">Each rung feeds both the same inputs. The narrowest questions come first, so the first line '
        "that fails names the cause. Relative differences are to the largest value of a tensor.</p>"
    )
    parts += [_ladder(dtype, [result for result in results if result.dtype == dtype]) for dtype in dtypes]
    parts += _pictures(results)
    parts.append("<h2>Environment</h2>")
    parts.append(_facts({n: v for n, v in facts.items() if n not in ("model", "optimizer", "text", "left out")}))
    parts.append("<footer>Made by python -m parity.check</footer></main></body></html>\n")
    return "".join(parts)


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return f'<section class="card"><dl>{rows}</dl></section>'


MARKS = {"pass": "✓", "FAIL": "✕", "reported": "reported", "skipped": "–"}


def _overview(results: Sequence[Result], dtypes: list[str]) -> str:
    """One mark for each rung and type: the worst that happened there."""
    cells = ["<span></span>"] + [f"<small>{rung}<br><span>{SHORT[rung]}</span></small>" for rung in TITLES]
    for dtype in dtypes:
        cells.append(f"<b>{dtype}</b>")
        for rung in TITLES:
            found = [r.verdict for r in results if (r.rung, r.dtype) == (rung, dtype)]
            verdict = next((v for v in ("FAIL", "pass", "reported", "skipped") if v in found), None)
            cells.append(f'<i class="{verdict}">{MARKS[verdict]}</i>' if verdict else "<i></i>")
    return f'<section class="card steps">{"".join(cells)}</section>'


def _ladder(dtype: str, results: list[Result]) -> str:
    headings = [("compared", ""), ("max abs", "number"), ("max rel", "number"), ("worst place", "")]
    headings += [("tolerance", ""), ("verdict", ""), ("s", "number")]
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in headings)
    rows, rung = [], -1
    for r in results:
        if r.rung != rung:
            rung = r.rung
            rows.append(f'<tr class="rung"><td colspan="7"><span>{rung}</span>{TITLES[rung]}</td></tr>')
        note = f"<small>{html.escape(r.note)}</small>" if r.note else ""
        rows.append(
            f'<tr class="{r.verdict}"><td>{html.escape(r.what)}{note}</td><td class="number">{_number(r.max_abs)}</td>'
            f'<td class="number">{_number(r.max_rel)}</td><td class="where">{html.escape(r.where)}</td>'
            f'<td>{html.escape(r.limit)}</td><td><span class="badge {r.verdict}">{r.verdict}</span></td>'
            f'<td class="number">{r.seconds:.1f}</td></tr>'
        )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<section class="card table"><h3 style="margin-top:16px">{dtype}</h3>{table}</section>'


def _pictures(results: Sequence[Result]) -> Iterator[str]:
    activations = [r for r in results if r.rung == 3 and any(d.name == "embedding" for d in r.differences)]
    if activations:
        yield "<h2>Activations</h2>"
        yield '<p class="lead">Relative difference by layer and operation; red is beyond the tolerance.</p>'
        for r in activations:
            yield _card(r.dtype, heat_map(r, tolerance("logits", r.dtype)))
    trajectories = [r for r in results if r.rung == 7 and r.curves]
    if trajectories:
        yield "<h2>Training</h2>"
        yield (
            '<p class="lead">The same batches, the same schedule. The noise is how far one framework strays from '
            "itself when every initial weight is moved to the next number of its type; the limit is for the "
            "mean of the logarithm over the run.</p>"
        )
        for r in trajectories:
            yield _card(r.dtype, loss_curves(r))
    gradients = [r for r in results if r.rung == 5 and len(r.differences) > 1]
    if gradients:
        yield "<h2>Gradients by parameter</h2>"
        for r in gradients:
            yield _card(r.dtype, gradient_bars(r, tolerance("gradients", r.dtype)))


def _card(title: str, inner: str) -> str:
    return f'<section class="card"><h3>{title}</h3>{inner}</section>'


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"
