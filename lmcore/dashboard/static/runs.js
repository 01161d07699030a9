// The list of runs, from which the user chooses those to draw.

import * as format from "./format.js";

const COLORS = 10;
const LIVE = 60; // seconds since the last row

export const color = (slot) => `c${slot % COLORS}${slot >= COLORS ? " dashed" : ""}`;

export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

export function isLive(run) {
  return Date.now() / 1000 - run.modified < LIVE && !(run.steps && run.step >= run.steps);
}

function progress(run) {
  if (!run.step) return "no rows yet";
  return `step ${format.whole(run.step)}${run.steps ? ` of ${format.whole(run.steps)}` : ""}`;
}

export class RunList {
  // choose(name, chosen) is called when the user changes a checkbox.
  constructor(list, filter, note, choose) {
    Object.assign(this, { list, filter, note, choose, items: new Map(), runs: [], slots: new Map() });
    filter.addEventListener("input", () => this.show());
  }

  // Show runs, of which those in `slots` (name -> slot of its color) are chosen.
  update(runs, slots) {
    Object.assign(this, { runs, slots });
    this.show();
  }

  visible() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    return this.runs.filter((run) => {
      const text = `${run.label} ${run.framework}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  show() {
    const visible = this.visible();
    const names = new Set(visible.map((run) => run.name));
    for (const [name, item] of this.items) {
      if (!names.has(name)) {
        item.row.remove();
        this.items.delete(name);
      }
    }
    visible.forEach((run, index) => {
      const item = this.items.get(run.name) || this.make(run);
      // An element that is moved loses the focus, so only those that are out of place move.
      if (this.list.children[index] !== item.row) this.list.insertBefore(item.row, this.list.children[index] || null);
      this.fill(item, run);
    });
    const hidden = this.runs.length - visible.length;
    this.note.hidden = !hidden;
    this.note.textContent = `${hidden} more, left out by the filter`;
  }

  make(run) {
    const row = element("li");
    const label = element("label");
    const box = element("input");
    box.type = "checkbox";
    box.addEventListener("change", () => this.choose(run.name, box.checked));
    const name = element("span", "name", run.label);
    const item = { row, box, name, swatch: element("span"), facts: element("span", "facts") };
    const text = element("span", "text-block");
    text.append(item.name, item.facts);
    label.append(box, item.swatch, text);
    row.append(label);
    this.items.set(run.name, item);
    return item;
  }

  fill(item, run) {
    const slot = this.slots.get(run.name);
    const live = isLive(run);
    item.box.checked = slot !== undefined;
    item.swatch.className = `swatch ${slot === undefined ? "off" : color(slot)}`;
    item.row.classList.toggle("live", live);
    const size = run.parameters ? `${format.count(run.parameters)} parameters` : "";
    const facts = [run.framework, size, progress(run), live ? "live" : format.age(run.modified)];
    const text = facts.filter(Boolean).join(" · ");
    if (item.facts.textContent !== text) item.facts.textContent = text;
  }
}
