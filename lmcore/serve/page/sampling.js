// The sampling controls: built from one table, read into the fields of a request.

import { make } from "./dom.js";

const FIELDS = [
  { name: "temperature", label: "Temperature", step: 0.1, min: 0, max: 2, hint: "0 takes the likeliest token" },
  { name: "top_p", label: "Top-p", step: 0.05, min: 0, max: 1, hint: "1 keeps all tokens" },
  { name: "top_k", label: "Top-k", step: 1, min: 0, hint: "0 keeps all tokens" },
  { name: "min_p", label: "Min-p", step: 0.01, min: 0, max: 1, hint: "0 keeps all tokens" },
  { name: "max_tokens", label: "Max tokens", step: 1, min: 1, hint: "Number of tokens to generate" },
  { name: "seed", label: "Seed", step: 1, min: 0, hint: "Empty draws a new one", empty: "random" },
];
const DEFAULTS = { temperature: 0.7, top_p: 1, top_k: 0, min_p: 0, max_tokens: 128 };

/** The controls in a fieldset. */
export class Sampling {
  constructor(fieldset) {
    this.inputs = {};
    for (const { name, label, step, min, max = "", hint, empty = "" } of FIELDS) {
      const input = make("input", {
        type: "number", id: name, name, min, max, step: "any", title: hint, placeholder: empty, inputMode: "decimal",
      });
      input.dataset.step = step;
      input.required = name in DEFAULTS;
      if (step === 1) Object.assign(input, { step: 1, inputMode: "numeric" });
      this.inputs[name] = input;
      fieldset.append(make("div", {}, make("label", { htmlFor: name, textContent: label }), input));
    }
    this.stop = make("textarea", { id: "stop-strings", rows: 1, spellcheck: false, title: "\\n is a line break" });
    const label = make("label", { htmlFor: "stop-strings", textContent: "Stop strings, one a line" });
    fieldset.append(make("div", { className: "wide" }, label, this.stop));
    this.fill(DEFAULTS);
  }

  /** Set the values of controls, by name; others stay. */
  fill(values) {
    for (const [name, input] of Object.entries(this.inputs)) {
      if (values?.[name] !== undefined && values[name] !== null) input.value = values[name];
    }
  }

  /** Return the fields of a request. An empty seed is drawn here, so that the page can name it. */
  read() {
    const fields = {};
    for (const [name, input] of Object.entries(this.inputs)) {
      if (input.value !== "") fields[name] = input.valueAsNumber;
    }
    fields.seed ??= Math.floor(Math.random() * 2 ** 31);
    const stop = this.stop.value.split("\n").filter((line) => line !== "").map(unescaped);
    return stop.length ? { ...fields, stop } : fields;
  }
}

/** Return text with \n, \t and \\ read as the characters that they stand for. */
function unescaped(text) {
  return text.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}
