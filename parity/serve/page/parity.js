// Both twins side by side: one prompt, two streams of tokens, their first difference, and the ladder's verdict.

import { ask, events } from "./api.js";
import { find, make, rate, tokenCount, whole } from "./dom.js";
import { keyField } from "./key.js";
import { announce, Notice } from "./notice.js";
import { Runner } from "./runner.js";
import { Sampling } from "./sampling.js";
import { themeButton } from "./theme.js";
import { TokenView } from "./tokens.js";

const SIGNS = { off: "–", checking: "…", passed: "✓", failed: "✕", error: "!" };
const POLL = 1000; // milliseconds between two looks at the check

const sampling = new Sampling(find("sampling"));
const notice = new Notice(find("notice"));
const runner = new Runner(notice, { begin, follow, end });
let model = null;
let columns = []; // one for each twin: {view, stats}

async function describe() {
  try {
    model = await ask("info");
  } catch (error) {
    find("model").textContent = "No description of the model";
    runner.report(error);
    return;
  }
  document.title = `${model.model} · parity`;
  find("model").textContent = model.model;
  find("facts").textContent = [
    `${whole(model.parameters)} parameters`, `${model.n_layers} layers`, `${model.n_heads} heads`,
    `vocabulary ${whole(model.vocab_size)}`, `context ${whole(model.context)}`, model.precision,
  ].join(" · ");
  const room = Math.max(1, Math.floor(model.context / 2)); // leaves as much for the prompt
  const { seed, ...defaults } = model.sampling;
  sampling.fill({ ...defaults, max_tokens: Math.min(defaults.max_tokens, room), seed });
  if (find("prompt").value === find("prompt").defaultValue) find("prompt").value = defaults.prompt;
  makeColumns();
  watchCheck();
}

/** Show the verdict of the ladder, as soon as there is one. */
async function watchCheck() {
  for (;;) {
    let found;
    try {
      found = await ask("verdict");
    } catch (error) {
      runner.report(error);
      return;
    }
    const seconds = `${found.seconds.toFixed(0)} s`;
    find("verdict").className = `verdict ${found.state}`;
    find("verdict-sign").textContent = SIGNS[found.state];
    find("verdict-text").textContent = found.verdict;
    find("verdict-scope").textContent = {
      checking: `The ladder: ${found.scope}, for ${seconds} so far. Until it is done, the twins are slower.`,
      passed: `The ladder: ${found.scope}; ${whole(found.comparisons)} comparisons in ${seconds}.`,
      failed: `The ladder: ${found.scope}; ${whole(found.comparisons)} comparisons in ${seconds}.`,
    }[found.state] ?? "";
    find("verdict-report").hidden = !found.report;
    if (found.state !== "checking") return;
    await new Promise((resolve) => { setTimeout(resolve, POLL); });
  }
}

/** Make an empty column for each twin; a token that is pointed at is marked in both. */
function makeColumns() {
  columns = model.twins.map((twin, number) => {
    const text = make("div", { className: "text", role: "group" });
    text.setAttribute("aria-label", `Tokens of ${twin.title}`);
    const stats = make("p", { className: "stats", textContent: `${twin.package}, ${twin.device}` });
    const beside = (index, on) => columns[1 - number].view.mark(index, "beside", on);
    let shown = -1;
    const onLeave = () => beside(shown, false);
    const onEnter = (index) => {
      onLeave();
      shown = index;
      beside(shown, true);
    };
    const head = make("div", { className: "row between" }, make("h3", { textContent: twin.title }), stats);
    const element = make("div", { className: "twin" }, head, text);
    element.dataset.twin = twin.framework;
    return { element, stats, view: new TokenView(text, { onEnter, onLeave }) };
  });
  find("twins").replaceChildren(...columns.map(({ element }) => element));
}

async function begin() {
  if (model === null) await describe();
  if (model === null) return null;
  makeColumns();
  for (const { view } of columns) view.element.classList.add("generated");
  return { body: { prompt: find("prompt").value, ...sampling.read() }, found: null };
}

async function follow(places, signal) {
  show(null, places.body.seed);
  for await (const event of events("compare", places.body, signal)) {
    event.choices.forEach((choice, number) => choice && add(columns[number].view, choice, event));
    places.found = event.summary;
    show(places.found, places.body.seed);
  }
  places.complete = true;
}

function add(view, choice, event) {
  const element = view.add(choice);
  if (choice.special) {
    element.classList.replace("part", "end");
    element.dataset.name = choice.token;
  }
  if (event.same) return;
  element.classList.add(event.position === event.summary.first_difference ? "first" : "after");
}

/** Show what was found so far. */
function show(found, seed) {
  const result = find("result");
  const first = found?.first_difference ?? null;
  result.className = first === null ? "result" : "result unequal";
  if (found === null) result.textContent = "The twins read the prompt…";
  else if (first === null) result.textContent = `Equal so far: ${tokenCount(found.tokens[0])}, seed ${seed}.`;
  else result.textContent = `Token ${first + 1} is the first that differs: ${named(first)}. Seed ${seed}.`;
  columns.forEach(({ stats }, number) => {
    const seconds = found?.seconds[number] ?? 0;
    const twin = model.twins[number];
    const speed = seconds > 0 ? rate(found.tokens[number] / seconds) : twin.device;
    stats.textContent = `${twin.package} · ${tokenCount(found?.tokens[number] ?? 0)} · ${speed}`;
  });
  find("difference").textContent = found && found.compared ? found.difference.toExponential(1) : "–";
  if (!found || !found.compared) return;
  find("difference-hint").textContent = `The largest absolute difference of two logits over the ${whole(found.compared)} `
    + `positions where both twins had the same context; it is at token ${found.where + 1}. The largest logit there is `
    + `${found.largest.toPrecision(3)}, so that it is ${(found.difference / found.largest).toExponential(1)} relative.`;
}

function end({ found, complete, body }) {
  for (const { view } of columns) view.element.classList.remove("generated");
  if (found === null) find("result").textContent = "Nothing was generated.";
  else if (found.first_difference === null && complete) {
    find("result").className = "result equal";
    find("result").textContent = `Equal to the end: both twins wrote the same ${tokenCount(found.tokens[0])}, `
      + `seed ${body.seed}.`;
  }
  announce(find("result").textContent);
}

/** Name both twins' token of a position. */
function named(index) {
  const name = ({ view }, number) => {
    const token = view.tokens[index];
    return `${model.twins[number].title} ${token ? JSON.stringify(token.token) : "has ended"}`;
  };
  return columns.map(name).join(", ");
}

themeButton(find("theme"));
keyField(describe);
describe();
