// Polls the server, and connects what the user chooses with what is shown.

import { Chart } from "./chart.js";
import * as panels from "./panels.js";
import { color, RunList } from "./runs.js";
import { parse, serialize, SMOOTHING } from "./state.js";

const PERIOD = 3000; // milliseconds between polls
const NEWEST = 6; // runs that are shown before the user chooses
const ORDER = ["loss", "valid_loss", "valid_bits_per_byte", "valid_perplexity", "grad_norm", "lr", "tokens_per_second"];
const HIDDEN = new Set(["step", "tokens"]);

const $ = (id) => document.getElementById(id);
let state = parse(location.hash);
let found = { folder: "", runs: [], reports: [] };
let round = 0; // of refreshing; answers to an earlier one are not used
let timer = 0;
const slots = new Map(); // name of a chosen run -> slot of its color
const curves = new Map(); // name -> {query, data}
const samples = new Map(); // name -> {list, file, text}

const chart = new Chart($("chart"));
const list = new RunList($("runs"), $("filter"), $("hidden-runs"), (name, chosen) => {
  const names = chosenRuns().filter((other) => other !== name);
  change({ runs: chosen ? [...names, name] : names });
});

class NoAnswer extends Error {}

// Fetch JSON; null where the server has no such thing (any more).
async function get(path, query = []) {
  let response;
  try {
    response = await fetch(`api/${path}?${new URLSearchParams(query)}`);
    if (response.ok) return await response.json();
  } catch (error) {
    throw new NoAnswer(path, { cause: error });
  }
  if (response.status === 404) return null;
  throw new NoAnswer(`${path}: status ${response.status}`);
}

// The chosen runs; as long as the user has chosen none, the newest.
function chosenRuns() {
  if (state.runs) return state.runs;
  if (slots.size) return [...slots.keys()];
  const newest = [...found.runs].sort((a, b) => b.modified - a.modified).slice(0, NEWEST);
  return newest.map((run) => run.name).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

// Give each chosen run the first free color; one that stays chosen keeps its own.
function assignColors() {
  const names = chosenRuns();
  for (const name of slots.keys()) if (!names.includes(name)) slots.delete(name);
  for (const name of names) {
    if (slots.has(name)) continue;
    const used = new Set(slots.values());
    let slot = 0;
    while (used.has(slot)) slot += 1;
    slots.set(name, slot);
  }
}

// The chosen runs that are there.
function shownRuns() {
  const byName = new Map(found.runs.map((run) => [run.name, run]));
  return [...slots].filter(([name]) => byName.has(name)).map(([name, slot]) => ({ ...byName.get(name), slot }));
}

function change(changes) {
  state = { ...state, ...changes };
  history.replaceState(null, "", serialize(state));
  show();
  refresh();
}

function curveQuery() {
  return { metric: state.metric, x: state.x, smooth: state.smooth, log_x: state.logX ? 1 : 0 };
}

function show() {
  assignColors();
  const runs = shownRuns();
  $("empty").hidden = !found.folder || found.runs.length > 0;
  $("panels").hidden = found.runs.length === 0;
  list.update(found.runs, slots);
  showControls();
  const fits = ({ query }) => query.metric === state.metric && query.x === state.x;
  const items = runs.map((run) => {
    const curve = curves.get(run.name);
    return { label: run.label, slot: run.slot, curve: curve && fits(curve) ? curve.data : null };
  });
  const drawn = items.filter(({ curve }) => curve && curve.values);
  const waiting = items.some(({ curve }) => !curve);
  const lines = drawn.map(({ label, slot, curve }) => {
    return { label, color: color(slot), raw: curve.raw, smooth: state.smooth ? curve.smooth : null };
  });
  const message = emptyMessage(runs.length, waiting);
  chart.update(lines, { metric: state.metric, x: state.x, logX: state.logX, logY: state.logY, message });
  panels.legend($("legend"), items, state);
  showSamples(runs);
  panels.reports($("reports-card"), $("reports"), found.reports);
}

// What the chart says where there is no curve to draw.
function emptyMessage(count, waiting) {
  if (!count) return "Choose a run to see its curves.";
  if (waiting) return "loading";
  if (state.x !== "step") return `None of the chosen runs has ${state.metric} by ${state.x}.`;
  return `None of the chosen runs has logged ${state.metric}${state.logX || state.logY ? " above zero" : ""}.`;
}

function showControls() {
  const known = new Set([state.metric]);
  for (const run of found.runs) run.metrics.forEach((name) => known.add(name));
  for (const name of slots.keys()) curves.get(name)?.data.metrics.forEach((metric) => known.add(metric));
  const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  const names = [...known].filter((name) => !HIDDEN.has(name));
  names.sort((a, b) => place(a) - place(b) || a.localeCompare(b));
  const present = [...$("metric").options].map((option) => option.value);
  if (JSON.stringify(names) !== JSON.stringify(present)) {
    $("metric").replaceChildren(...names.map((name) => new Option(name, name)));
  }
  $("metric").value = state.metric;
  $("x").value = state.x;
  const nearest = SMOOTHING.findIndex((weight) => weight >= state.smooth);
  $("smooth").value = nearest < 0 ? SMOOTHING.length - 1 : nearest;
  $("smooth-value").textContent = state.smooth || "off";
  $("log-x").checked = state.logX;
  $("log-y").checked = state.logY;
}

function showSamples(runs) {
  const none = { samples: [], text: "" };
  const items = runs.map(({ name, label, slot }) => ({ label, slot, ...(samples.get(name) || none) }));
  const steps = panels.sampleSteps(items);
  $("sample-field").hidden = steps.length < 2;
  const slider = $("sample");
  slider.max = Math.max(0, steps.length - 1);
  const at = state.sample === null ? steps.length - 1 : steps.findLastIndex((step) => step <= state.sample);
  slider.value = Math.max(0, at);
  slider.steps = steps;
  $("sample-step").textContent = state.sample === null ? "latest" : state.sample.toLocaleString("en-US");
  panels.samples($("samples"), items, state);
}

// Fetch everything once, and draw each curve as soon as it is there.
async function refresh() {
  clearTimeout(timer);
  round += 1;
  const mine = round;
  const current = () => mine === round;
  try {
    const latest = await get("runs");
    if (!current()) return;
    const natural = (a, b) => a.label.localeCompare(b.label, "en", { numeric: true });
    found = { ...latest, runs: latest.runs.sort(natural) };
    $("folder").textContent = found.folder;
    document.title = `${found.folder}: runs`;
    for (const place of document.querySelectorAll(".where")) place.textContent = found.folder.replace(/\/$/, "");
    show();
    const names = shownRuns().map((run) => run.name);
    const jobs = names.flatMap((name) => [fetchCurve(name, current), fetchSample(name, current)]);
    jobs.push(fetchConfigs(names, current));
    await Promise.all(jobs);
    if (current()) status("live", "live");
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    if (current()) status("the server does not answer; trying again", "lost");
  }
  if (current()) timer = setTimeout(tick, PERIOD);
}

function tick() {
  if (document.hidden) timer = setTimeout(tick, PERIOD);
  else refresh();
}

async function fetchCurve(name, current) {
  const query = curveQuery();
  const data = await get("curve", { run: name, ...query });
  if (!current()) return;
  const before = JSON.stringify(curves.get(name));
  if (data) curves.set(name, { query, data });
  else curves.delete(name); // the run has vanished meanwhile
  if (JSON.stringify(curves.get(name)) !== before) show();
}

async function fetchSample(name, current) {
  const all = (await get("samples", { run: name })) || [];
  const sample = panels.sampleAt(all, state.sample);
  const found = sample && (await get("sample", { run: name, file: sample.file }));
  if (!current()) return;
  samples.set(name, { samples: all, text: found ? found.text : "" });
  showSamples(shownRuns());
}

async function fetchConfigs(names, current) {
  const data = await get("configs", names.map((name) => ["run", name]));
  if (data && current()) panels.configs($("configs"), data);
}

function status(text, className) {
  if ($("status").textContent !== text) $("status").textContent = text;
  $("status").className = className;
}

$("smooth").max = SMOOTHING.length - 1;
$("metric").addEventListener("change", (event) => change({ metric: event.target.value }));
$("x").addEventListener("change", (event) => change({ x: event.target.value }));
$("smooth").addEventListener("input", (event) => change({ smooth: SMOOTHING[event.target.value] }));
$("log-x").addEventListener("change", (event) => change({ logX: event.target.checked }));
$("log-y").addEventListener("change", (event) => change({ logY: event.target.checked }));
$("sample").addEventListener("input", ({ target }) => {
  const index = Number(target.value);
  change({ sample: index === target.steps.length - 1 ? null : target.steps[index] });
});
$("all").addEventListener("click", () => {
  change({ runs: [...new Set([...chosenRuns(), ...list.visible().map((run) => run.name)])] });
});
$("none").addEventListener("click", () => change({ runs: [] }));
$("controls").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => {
  state = parse(location.hash);
  slots.clear();
  refresh();
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();
