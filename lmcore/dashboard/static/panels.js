// The parts of the page below the chart: last values, samples, config differences and reports.

import * as format from "./format.js";
import { color, element } from "./runs.js";

// Call a function only when its data differ from the last time, so that nothing flickers or loses focus or selection.
const last = new Map();
function ifChanged(key, data, render) {
  const text = JSON.stringify(data);
  if (last.get(key) === text) return;
  last.set(key, text);
  render();
}

function swatch(slot) {
  return element("span", `swatch ${color(slot)}`);
}

// What a curve has no points for, in words; empty if it has some.
function missing(curve, state) {
  if (!curve) return "loading";
  if (curve.values) return "";
  if (curve.without_axis) return `has no ${state.x === "time" ? "tokens_per_second, so no training time" : "tokens"}`;
  return curve.rows ? `has not logged ${state.metric}` : "has no rows yet";
}

function lastValue(curve) {
  const { step, y } = curve.raw;
  const at = y.findLastIndex((value) => value !== null);
  if (at < 0) return "no finite value";
  const smooth = curve.smooth ? curve.smooth.y.findLast((value) => value !== null) : null;
  const average = smooth === null ? "" : `, smoothed ${format.number(smooth)}`;
  return `${format.number(y[at])}${average} at step ${format.whole(step[at])}`;
}

export function legend(list, items, state) {
  const rows = items.map(({ label, slot, curve }) => {
    const notes = [];
    if (curve && curve.values) {
      if (curve.raw.y.includes(null)) notes.push("gaps: values that are not finite");
      if (state.logY && curve.raw.y.some((y) => y !== null && y <= 0)) notes.push("values of 0 or less are not shown");
    }
    if (curve && curve.rejected) notes.push(`lines left out, since they are no rows: ${curve.rejected}`);
    const absent = missing(curve, state);
    return { label, slot, text: absent || lastValue(curve), absent: Boolean(absent), notes };
  });
  ifChanged("legend", rows, () => {
    list.replaceChildren(...rows.map((row) => {
      const item = element("li", row.absent ? "absent" : "");
      item.append(swatch(row.slot), element("span", "name", row.label), element("span", "value", row.text));
      if (row.notes.length) item.append(element("span", "note", row.notes.join("; ")));
      return item;
    }));
  });
}

// The steps at which any of the runs has a sample.
export function sampleSteps(items) {
  return [...new Set(items.flatMap(({ samples }) => samples.map(({ step }) => step)))].sort((a, b) => a - b);
}

// The sample of a run at a step (null: the latest): the last one up to it.
export function sampleAt(samples, step) {
  return samples.findLast((sample) => step === null || sample.step <= step);
}

export function samples(box, items, state) {
  const some = items.filter(({ samples: all }) => all.length);
  const shown = some.map(({ label, slot, samples: all, text }) => {
    const sample = sampleAt(all, state.sample);
    return { label, slot, step: sample ? sample.step : null, text };
  });
  const without = items.filter(({ samples: all }) => !all.length).map(({ label }) => label);
  ifChanged("samples", [shown, without], () => {
    const parts = shown.map(article);
    if (!items.length) parts.push(element("p", "note", "Choose runs to see what they write."));
    if (without.length) parts.push(element("p", "note", `No samples yet: ${without.join(", ")}.`));
    box.replaceChildren(...parts);
  });
}

function article(sample) {
  const made = element("article");
  const title = element("h3");
  title.append(swatch(sample.slot), element("span", "name", sample.label));
  if (sample.step === null) {
    made.append(title, element("p", "note", "no sample up to this step"));
    return made;
  }
  title.append(element("span", "at", `step ${format.whole(sample.step)}`));
  const text = element("pre", "", sample.text);
  text.tabIndex = 0;
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", `Sample of ${sample.label}`);
  made.append(title, text);
  return made;
}

export function configs(box, found) {
  ifChanged("configs", found, () => {
    const parts = [];
    if (found.runs.length < 2) {
      parts.push(element("p", "note", "Choose two runs or more to compare their configs."));
    } else if (!found.fields.length) {
      parts.push(element("p", "note", `All ${found.same} fields are the same.`));
    } else {
      const same = found.same === 1 ? "1 more field is" : `${found.same} more fields are`;
      parts.push(table(found), element("p", "note", `${same} the same in all.`));
    }
    for (const problem of found.problems) parts.push(element("p", "note", problem));
    box.replaceChildren(...parts);
  });
}

function table(found) {
  const made = element("table");
  const head = made.createTHead().insertRow();
  for (const text of ["field", ...found.runs]) {
    const cell = element("th", text === "field" ? "" : "text", text);
    cell.scope = "col";
    head.append(cell);
  }
  const body = made.createTBody();
  for (const { field, values } of found.fields) {
    const row = body.insertRow();
    row.append(element("td", "field-name", field));
    values.forEach((value, index) => {
      const cell = element("td", "text", value);
      cell.dataset.name = found.runs[index];
      row.append(cell);
    });
  }
  return made;
}

export function reports(card, list, found) {
  card.hidden = !found.length;
  const rows = found.map((report) => ({ ...report, age: format.age(report.modified) }));
  ifChanged("reports", rows, () => {
    list.replaceChildren(...rows.map((report) => {
      const item = element("li");
      const link = element("a", "", report.title);
      link.href = `reports/${report.path.split("/").map(encodeURIComponent).join("/")}`;
      link.target = "_blank";
      link.rel = "noopener";
      item.append(link, element("span", "note", `${report.path} · ${report.age}`));
      return item;
    }));
  });
}
