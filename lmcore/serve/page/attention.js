// The attention of one layer and head over the text: a heat map, and the tokens that one token attends to.

import { ApiError, ask } from "./api.js";
import { askForKey } from "./key.js";
import { find, make, percent, visible } from "./dom.js";
import { Notice } from "./notice.js";
import { TokenView } from "./tokens.js";

const SIDE = 380;

/** The card of the page; `textOf()` gives the text to look at. */
export class Attention {
  constructor(textOf) {
    this.textOf = textOf;
    this.notice = new Notice(find("attention-notice"));
    this.canvas = find("map");
    this.answer = null;
    this.cell = { row: 0, column: 0 };
    this.abort = null;
    find("attention-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.load();
    });
    for (const name of ["layer", "head"]) find(name).addEventListener("change", () => this.answer && this.load());
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("focus", () => this.#select(this.cell.row, this.cell.column));
    document.addEventListener("themechange", () => this.answer && this.#draw());
  }

  /** Offer the layers and heads of a model. */
  describe({ n_layers, n_heads, max_attention }) {
    fill(find("layer"), n_layers);
    fill(find("head"), n_heads);
    this.longest = max_attention;
  }

  /** Ask the server for the weights of the chosen layer and head, and show them. */
  async load() {
    this.abort?.abort();
    this.abort = new AbortController();
    const prompt = this.textOf();
    if (prompt === "") {
      this.notice.show("There is no text yet: write a prompt, or generate.");
      return;
    }
    this.notice.hide();
    find("attention").setAttribute("aria-busy", "true");
    const body = { prompt, layer: Number(find("layer").value), head: Number(find("head").value) };
    try {
      this.#show(await ask("attention", body, this.abort.signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) askForKey();
      this.notice.show(error.message);
    } finally {
      find("attention").removeAttribute("aria-busy");
    }
  }

  #show(answer) {
    this.answer = answer;
    find("attention-result").hidden = false;
    const holder = find("attended");
    const fresh = holder.cloneNode(false); // without the listeners of the last text
    holder.replaceWith(fresh);
    this.view = new TokenView(fresh, { onEnter: (index) => this.#summarize(index), alternatives: false });
    for (const token of answer.tokens) this.view.add({ text: token });
    this.#draw();
    this.#select(answer.tokens.length - 1, Math.min(this.cell.column, answer.tokens.length - 1));
  }

  #draw() {
    const { weights } = this.answer;
    const size = weights.length;
    this.canvas.width = this.canvas.height = size;
    this.canvas.classList.toggle("smooth", size > SIDE);
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(size, size);
    const [red, green, blue] = getComputedStyle(this.canvas).color.match(/[\d.]+/g).map(Number);
    for (let row = 0; row < size; row++) {
      for (let column = 0; column <= row; column++) {
        const alpha = 255 * Math.sqrt(weights[row][column]); // a square root, so that small weights are seen
        image.data.set([red, green, blue, alpha], 4 * (row * size + column));
      }
    }
    context.putImageData(image, 0, 0);
  }

  #point(event) {
    if (!this.answer) return;
    const size = this.answer.weights.length;
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const limited = (fraction) => Math.min(size - 1, Math.max(0, Math.floor(fraction * size)));
    this.#select(limited((event.clientY - top) / height), limited((event.clientX - left) / width));
  }

  #key(event) {
    const moves = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
    const move = moves[event.key];
    if (!move || !this.answer) return;
    event.preventDefault();
    const last = this.answer.weights.length - 1;
    const limited = (index) => Math.min(last, Math.max(0, index));
    this.#select(limited(this.cell.row + move[0]), limited(this.cell.column + move[1]));
  }

  /** Say the weight of a cell, and colour the tokens by its row. */
  #select(row, column) {
    this.cell = { row, column };
    this.#attend(row);
    const { tokens, weights } = this.answer;
    const words = column > row ? "does not see" : `attends ${percent(weights[row][column])} to`;
    const name = (index) => make("code", { textContent: visible(tokens[index]) });
    find("cell").replaceChildren(name(row), ` (${row}) ${words} `, name(column), ` (${column})`);
  }

  /** Say which token a token attends to most, and colour the tokens by its row. */
  #summarize(index) {
    const row = this.answer.weights[index].slice(0, index + 1);
    this.#select(index, row.indexOf(Math.max(...row)));
  }

  /** Colour the tokens by the attention that one of them pays to each. */
  #attend(index) {
    const row = this.answer.weights[index];
    const largest = Math.max(...row);
    this.view.tokens.forEach(({ element }, at) => {
      const share = at <= index && largest > 0 ? row[at] / largest : 0;
      element.style.setProperty("--weight", `${Math.round(80 * share)}%`);
      element.classList.toggle("asking", at === index);
      element.title = at <= index ? percent(row[at]) : "";
    });
  }
}

function fill(select, count) {
  select.replaceChildren(...Array.from({ length: count }, (_, value) => make("option", { value, textContent: value })));
}
