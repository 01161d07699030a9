// A line chart in SVG, with a marker that shows each run's value: by the pointer, a finger, or the arrow keys.

import * as format from "./format.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const NEAR = 40; // pixels beyond the ends of a curve at which the marker still shows its value
const FEW = 4; // curves that are drawn one wider than the next
const MARGIN = { top: 12, right: 14, bottom: 40, left: 58 };
const TITLES = { step: "steps", tokens: "tokens" };

function node(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

// A function from values to pixels, with its inverse.
function scale([low, high], [from, to], log) {
  const turn = log ? Math.log10 : (value) => value;
  const back = log ? (value) => 10 ** value : (value) => value;
  const [a, b] = [turn(low), turn(high)];
  const place = (value) => from + ((turn(value) - a) / (b - a || 1)) * (to - from);
  place.invert = (pixel) => back(a + ((pixel - from) / (to - from)) * (b - a));
  return place;
}

// The range of all values; widened where it is a single one, and by a little above and below.
function extent(lists, log, pad) {
  let [low, high] = [Infinity, -Infinity];
  for (const values of lists) {
    for (const value of values) {
      if (value === null || (log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return null;
  if (log) {
    const more = low === high ? 1.5 : (high / low) ** pad;
    return [low / more, high * more];
  }
  const more = low === high ? Math.abs(low) / 10 || 1 : (high - low) * pad;
  return [low - more, high + more];
}

function nearest(values, x) {
  let [low, high] = [0, values.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - values[low - 1] < values[low] - x ? low - 1 : low;
}

export class Chart {
  constructor(box) {
    this.box = box;
    this.curves = [];
    this.marker = null; // the x under the marker
    this.svg = node(box, "svg", { role: "img" });
    // The marker is in a layer of its own, so that a move of it does not draw the curves again.
    this.hover = node(box, "svg", { class: "hover", "aria-hidden": "true" });
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.setAttribute("aria-live", "polite");
    this.tip.hidden = true;
    this.message = document.createElement("p");
    this.message.className = "message";
    box.append(this.tip, this.message);
    new ResizeObserver(() => this.draw()).observe(box);
    box.addEventListener("pointermove", (event) => this.point(event));
    box.addEventListener("pointerdown", (event) => this.point(event));
    box.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.mark(null));
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("blur", () => this.mark(null));
  }

  // Draw curves: {label, color, raw, smooth}, each line {step, x, y}. options: {metric, x, logX, logY, message}.
  update(curves, options) {
    this.curves = curves;
    this.options = options;
    this.draw();
  }

  draw() {
    const { options } = this;
    const width = this.box.clientWidth;
    if (!options || width < 50) return;
    const height = Math.round(Math.min(440, Math.max(260, width * 0.5)));
    const lines = this.curves.flatMap((curve) => [curve.raw, curve.smooth].filter(Boolean));
    const xs = extent(lines.map((line) => line.x), options.logX, 0);
    const ys = extent(lines.map((line) => line.y), options.logY, 0.04);
    this.svg.replaceChildren();
    for (const layer of [this.svg, this.hover]) {
      layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
      layer.setAttribute("height", height);
    }
    const drawn = Boolean(xs && ys);
    this.message.hidden = drawn;
    this.message.textContent = drawn ? "" : options.message;
    this.svg.setAttribute("aria-label", drawn ? `${options.metric} of ${this.curves.length} runs` : options.message);
    this.place = null;
    if (drawn) {
      const right = width - MARGIN.right;
      const bottom = height - MARGIN.bottom;
      const x = scale(xs, [MARGIN.left, right], options.logX);
      const y = scale(ys, [bottom, MARGIN.top], options.logY);
      this.place = { x, y };
      this.frame = { width, height, right, bottom };
      this.axes(xs, ys);
      this.curves.forEach((curve, index) => this.line(curve, this.curves.length - 1 - index));
    }
    this.mark(this.marker);
  }

  axes(xs, ys) {
    const { width, height, right, bottom } = this.frame;
    const { options, place } = this;
    const [, unit, size] = options.x === "time" ? format.timeUnit(xs[1]) : [0, "", 1];
    const grid = node(this.svg, "g", { class: "grid" });
    for (const value of format.ticks(ys[0], ys[1], Math.round(height / 60), options.logY)) {
      const y = place.y(value).toFixed(1);
      node(grid, "line", { x1: MARGIN.left, x2: right, y1: y, y2: y });
      node(this.svg, "text", { x: MARGIN.left - 8, y, class: "y-tick" }, format.tick(value));
    }
    for (const value of format.ticks(xs[0] / size, xs[1] / size, Math.round(width / 110), options.logX)) {
      const x = place.x(value * size).toFixed(1);
      node(grid, "line", { x1: x, x2: x, y1: MARGIN.top, y2: bottom });
      node(this.svg, "text", { x, y: bottom + 17, class: "x-tick" }, format.tick(value));
    }
    const title = options.x === "time" ? `training time (${unit})` : TITLES[options.x];
    node(this.svg, "text", { x: (MARGIN.left + right) / 2, y: height - 6, class: "x-title" }, title);
  }

  // Draw a curve below others, so much wider, if they are few, that it is seen even where they are the same.
  line(curve, above) {
    const main = curve.smooth || curve.raw;
    const group = node(this.svg, "g", { class: `curve ${curve.color}` });
    if (curve.smooth) node(group, "path", { d: this.path(curve.raw), class: "faint" });
    const width = 1.6 + (this.curves.length <= FEW ? above * 1.2 : 0);
    node(group, "path", { d: this.path(main), class: "line", "stroke-width": width });
    if (main.x.length <= 30) {
      main.x.forEach((x, index) => {
        const [px, py] = this.pixels(x, main.y[index]);
        if (py !== null) node(group, "circle", { cx: px.toFixed(1), cy: py.toFixed(1), r: 1.7 + width / 2 });
      });
    }
  }

  pixels(x, y) {
    const shown = y !== null && !(this.options.logY && y <= 0) && !(this.options.logX && x <= 0);
    return shown ? [this.place.x(x), this.place.y(y)] : [0, null];
  }

  path({ x, y }) {
    const parts = [];
    let pen = "M";
    for (let index = 0; index < x.length; index += 1) {
      const [px, py] = this.pixels(x[index], y[index]);
      if (py === null) {
        pen = "M"; // a gap
      } else {
        parts.push(`${pen}${px.toFixed(1)},${py.toFixed(1)}`);
        pen = "L";
      }
    }
    return parts.join("");
  }

  point(event) {
    if (!this.place) return;
    const pixel = event.clientX - this.svg.getBoundingClientRect().left;
    const inside = pixel >= MARGIN.left - 10 && pixel <= this.frame.right + 10;
    this.mark(inside ? this.place.x.invert(pixel) : null);
  }

  key(event) {
    const step = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: -step, ArrowRight: step, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") this.mark(null);
    if (!(event.key in moves) || !this.place) return;
    event.preventDefault();
    const xs = [...new Set(this.curves.flatMap((curve) => (curve.smooth || curve.raw).x))];
    const all = xs.filter((x) => !this.options.logX || x > 0).sort((a, b) => a - b);
    const start = this.marker === null ? (step === moves[event.key] ? -1 : all.length) : nearest(all, this.marker);
    this.mark(all[Math.min(all.length - 1, Math.max(0, start + moves[event.key]))]);
  }

  // Put the marker at an x, or remove it.
  mark(x) {
    this.marker = x;
    this.hover.replaceChildren();
    const found = x === null || !this.place ? [] : this.near(x);
    this.tip.hidden = !found.length;
    if (!found.length) return;
    const distance = (item) => Math.abs(item.px - this.place.x(x));
    const closest = found.reduce((best, item) => (distance(item) < distance(best) ? item : best));
    const { px } = closest;
    node(this.hover, "line", { x1: px, x2: px, y1: MARGIN.top, y2: this.frame.bottom });
    for (const item of found) node(this.hover, "circle", { cx: item.px, cy: item.py, r: 4, class: item.curve.color });
    this.describe(found, closest);
  }

  // The point of each run that is nearest to an x, from the highest on the screen to the lowest.
  near(x) {
    const wanted = this.place.x(x);
    const found = [];
    for (const curve of this.curves) {
      const line = curve.smooth || curve.raw;
      if (!line.x.length) continue;
      const index = nearest(line.x, x);
      const [px, py] = this.pixels(line.x[index], line.y[index]);
      const within = x >= line.x[0] && x <= line.x[line.x.length - 1];
      if (py !== null && (within || Math.abs(px - wanted) <= NEAR)) {
        found.push({ curve, px, py, x: line.x[index], step: line.step[index], value: line.y[index] });
      }
    }
    return found.sort((a, b) => a.py - b.py);
  }

  describe(found, closest) {
    const head = document.createElement("p");
    const texts = { step: "", tokens: `${format.count(closest.x)} tokens`, time: format.duration(closest.x) };
    const metric = `${this.options.metric}${closest.curve.smooth ? ", smoothed" : ""}`;
    head.textContent = [metric, texts[this.options.x]].filter(Boolean).join(" · ");
    const table = document.createElement("table");
    for (const item of found) {
      const row = table.insertRow();
      const name = row.insertCell();
      const swatch = document.createElement("span");
      swatch.className = `swatch ${item.curve.color}`;
      const label = document.createElement("span");
      label.className = "name";
      label.textContent = item.curve.label;
      name.append(swatch, label);
      row.insertCell().textContent = `step ${format.whole(item.step)}`;
      row.insertCell().textContent = format.number(item.value);
    }
    this.tip.replaceChildren(head, table);
    const left = closest.px + 14;
    const tipWidth = this.tip.offsetWidth;
    const room = left + tipWidth <= this.frame.width;
    const at = room ? left : Math.max(0, closest.px - tipWidth - 14);
    this.tip.style.transform = `translate(${Math.round(at)}px, ${MARGIN.top + 6}px)`;
  }
}
