"""The report as one web page that stands alone: no network, no script, readable in light and dark and on paper."""

import html
from collections.abc import Iterator, Sequence

from lmcore.report.html import Markup, card, facts_list, table
from lmcore.report.html import page as html_page
from parity.check.result import MESH_RUNG, Result
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
    12: "Runs on meshes",
}
SHORT_TITLES = (
    *("repeats", "batches", "weights", "activations", "outputs", "gradients", "update", "training", "decoding"),
    *("third", "restart", "ways", "meshes"),
)
SHORT = dict(zip(TITLES, SHORT_TITLES, strict=True))

STYLE = """
:root { --cell-ink: #16324f; }
@media (prefers-color-scheme: dark) { :root { --cell-ink: #e6f0fb; } }
.verdict { border-radius: 16px; padding: 26px 30px; border: 1px solid; display: flex; gap: 22px; align-items: center; }
.verdict > div:last-child { min-width: 0; }
.verdict.good { background: var(--good-soft); border-color: color-mix(in srgb, var(--good) 35%, transparent); }
.verdict.bad { background: var(--bad-soft); border-color: color-mix(in srgb, var(--bad) 35%, transparent); }
.mark { flex: none; width: 54px; height: 54px; border-radius: 50%; display: grid; place-items: center; color: #fff;
  font-size: 28px; font-weight: 700; }
.good .mark { background: #1a7f4b; } .bad .mark { background: var(--alarm); }
.verdict h1 { margin: 0; overflow-wrap: anywhere; }
.verdict p { margin: 6px 0 0; color: var(--muted); overflow-wrap: anywhere; }
.verdict .likely { color: var(--ink); font-weight: 600; }
tr.section span { display: inline-grid; place-items: center; width: 22px; height: 22px; border-radius: 7px;
  margin-right: 9px;  background: color-mix(in srgb, var(--muted) 16%, transparent); font-size: 12px; }
td.where { color: var(--muted); font-size: 12.5px; min-width: 120px; overflow-wrap: anywhere; }
.badge { display: inline-block; white-space: nowrap; padding: 1px 9px; border-radius: 99px; font-size: 12px;
  font-weight: 650; }
.pass { color: var(--good); background: var(--good-soft); } .FAIL { color: #fff; background: var(--alarm); }
.reported, .skipped { color: var(--note); background: color-mix(in srgb, var(--note) 14%, transparent); }
.steps { display: grid; grid-template-columns: max-content repeat(12, minmax(0, 1fr)); gap: 6px; align-items: center;
  font-size: 13px; }
.steps b { font-weight: 600; padding-right: 10px; }
.steps small { color: var(--muted); text-align: center; font-size: 11.5px;
  line-height: 1.25; padding-bottom: 2px; align-self: end; }
.steps i { font-style: normal; font-weight: 700; text-align: center; border-radius: 8px; padding: 5px 0; }
@media (max-width: 900px) { .steps small span { display: none; } }
@media (max-width: 640px) { .verdict { padding: 18px; gap: 14px; }
  .steps { grid-template-columns: repeat(12, minmax(0, 1fr)); gap: 3px; } .steps b { grid-column: 1 / -1; }
  .steps > span { display: none; } }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; }
svg.small { font-size: 11.5px; }
svg text { fill: var(--muted); } svg .name { fill: var(--ink); font-size: 11.5px; }
svg .value { fill: var(--muted); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .cell.within { fill: var(--blue); } svg .cell.beyond { fill: var(--alarm); }
svg .value.within { fill: var(--cell-ink); } svg .value.beyond { fill: #fff; font-weight: 700; }
svg .bar.within { fill: var(--blue); fill-opacity: .8; } svg .bar.beyond { fill: var(--alarm); }
svg .grid { stroke: var(--line); } svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .reference { stroke: var(--blue); stroke-width: 5; stroke-opacity: .4; }
svg .port { stroke: var(--orange); stroke-width: 1.6; }
svg .noise { stroke: var(--grey); stroke-width: 1.6; }
svg .deviation { stroke: var(--ink); stroke-width: 1.6; }
svg .band { fill: var(--grey); fill-opacity: .28; }
svg .limit { stroke: var(--alarm); stroke-dasharray: 4 4; } svg .limit-label { fill: var(--bad); font-size: 11px; }
"""

ABOVE = ("model", "optimizer", "text", "left out")
"""Facts that stand at the head of the page; the others are the environment."""


def page(
    ok: bool,
    verdict: str,
    likely: str,
    subject: str,
    results: Sequence[Result],
    facts: dict[str, str],
    compared: str,
) -> str:
    """Return the whole page of a `parity.report.report.Report`.

    Args:
        ok: whether the two are the same model.
        verdict: one sentence that says so.
        likely: sentences that name the likely causes; may be empty.
        subject: what was checked.
        results: all lines.
        facts: what else is to be known, in words.
        compared: the two implementations.
    """
    good = "good" if ok else "bad"
    dtypes = list(dict.fromkeys(result.dtype for result in results))
    parts = [
        f'<p class="kicker">parity · {html.escape(compared)}</p>',
        f'<section class="verdict {good}"><div class="mark" aria-hidden="true">{"✓" if ok else "✕"}</div>',
        f'<div><h1 id="verdict">{html.escape(verdict)}</h1>',
        f'<p class="likely">{html.escape(likely)}</p>' if likely else "",
        f"<p>{html.escape(subject)}</p></div></section>",
    ]
    if above := {name: value for name, value in facts.items() if name in ABOVE}:
        parts.append(facts_list(above))
    parts.append(_overview(results, dtypes))
    parts.append("<h2>The ladder</h2>")
    parts.append(
        '<p class="lead">Each rung feeds both the same inputs. The narrowest questions come first, so the first line '
        "that fails names the cause. Relative differences are to the largest value of a tensor.</p>"
    )
    parts += [_ladder(dtype, [result for result in results if result.dtype == dtype]) for dtype in dtypes]
    parts += _charts(results)
    parts.append("<h2>Environment</h2>")
    parts.append(facts_list({name: value for name, value in facts.items() if name not in ABOVE}))
    parts.append("<footer>Written by parity</footer>")
    return html_page(f"parity: {'same model' if ok else 'they differ'}", parts, style=STYLE)


MARKS = {"pass": "✓", "FAIL": "✕", "reported": "•", "skipped": "–"}


def _overview(results: Sequence[Result], dtypes: list[str]) -> str:
    """One mark for each rung and type: the worst that happened there."""
    alone = any(r.rung == MESH_RUNG for r in results)
    rungs = [rung for rung in TITLES if (rung == MESH_RUNG) is alone]
    cells = ["<span></span>"] + [f"<small>{rung}<br><span>{SHORT[rung]}</span></small>" for rung in rungs]
    for dtype in dtypes:
        cells.append(f"<b>{html.escape(dtype)}</b>")
        for rung in rungs:
            verdicts = [r.verdict for r in results if (r.rung, r.dtype) == (rung, dtype)]
            worst = next((v for v in ("FAIL", "pass", "reported", "skipped") if v in verdicts), None)
            cells.append(f'<i class="{worst}" title="{worst}">{MARKS[worst]}</i>' if worst else "<i></i>")
    return card("".join(cells), kind="steps")


def _ladder(dtype: str, results: list[Result]) -> str:
    headings = ("compared", "max abs", "max rel", "worst place", "tolerance", "verdict", "s")
    rows, sections = [], {}
    for number, r in enumerate(results):
        if number == 0 or results[number - 1].rung != r.rung:
            sections[number] = Markup(f"<span>{r.rung}</span>{html.escape(TITLES[r.rung])}")
        note = f"<small>{html.escape(r.note)}</small>" if r.note else ""
        what = Markup(html.escape(r.what) + note)
        verdict = Markup(f'<span class="badge {r.verdict}">{r.verdict}</span>')
        rows.append([what, _number(r.max_abs), _number(r.max_rel), r.where, r.limit, verdict, f"{r.seconds:.1f}"])
    columns = ("", "", "", "text where", "text", "text", "")
    return card(table(headings, rows, column_classes=columns, sections=sections), heading=dtype)


def _charts(results: Sequence[Result]) -> Iterator[str]:
    activations = [r for r in results if r.rung == 3 and any(d.name == "embedding" for d in r.differences)]
    if activations:
        yield "<h2>Activations</h2>"
        yield '<p class="lead">Relative difference by layer and operation; red is beyond the tolerance.</p>'
        for r in activations:
            yield card(heat_map(r, tolerance("logits", r.dtype)), heading=r.dtype)
    trajectories = [r for r in results if r.rung == 7 and r.curves]
    if trajectories:
        yield "<h2>Training</h2>"
        yield (
            '<p class="lead">The same batches, the same schedule. The noise is how far one framework deviates from '
            "itself when every initial weight is moved to the next number of its type; the limit is for the "
            "mean of the logarithm over the run.</p>"
        )
        for r in trajectories:
            yield card(loss_curves(r), heading=r.dtype)
    gradients = [r for r in results if r.rung == 5 and len(r.differences) > 1]
    if gradients:
        yield "<h2>Gradients by parameter</h2>"
        for r in gradients:
            yield card(gradient_bars(r, tolerance("gradients", r.dtype)), heading=r.dtype)


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"
