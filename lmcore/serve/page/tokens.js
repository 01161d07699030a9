// Generated text as tokens: one element each, with the likeliest alternatives shown beside the one that is pointed at.

import { make, percent, visible } from "./dom.js";

/** A sequence of tokens in an element. One of them is in the page's tab order; arrow keys move between them. */
export class TokenView {
  /**
   * `onEnter(index)` and `onLeave()` are called when a token is pointed at or focused, and when none is any more;
   * `alternatives` says whether the likeliest alternatives are shown then.
   */
  constructor(element, { onEnter = () => {}, onLeave = () => {}, alternatives = true } = {}) {
    this.element = element;
    this.tokens = [];
    this.alternatives = alternatives;
    this.onEnter = onEnter;
    this.onLeave = onLeave;
    element.addEventListener("pointerover", (event) => this.#enter(event.target));
    element.addEventListener("pointerleave", () => this.#leave());
    element.addEventListener("focusin", (event) => this.#enter(event.target));
    element.addEventListener("focusout", () => this.#leave());
    element.addEventListener("keydown", (event) => this.#key(event));
    element.addEventListener("click", (event) => this.#indexOf(event.target) >= 0 && event.target.focus());
  }

  /** Append a token: its text, its probability's logarithm and the likeliest alternatives [{token, logprob}], or null. */
  add({ text, token, logprob = null, top = null }) {
    const element = make("span", { className: "token", textContent: text, tabIndex: this.tokens.length ? -1 : 0 });
    if (text === "") element.classList.add("part"); // a part of a character, which a later token completes
    this.tokens.push({ element, text, token: token ?? text, logprob, top });
    this.element.append(element);
    return element;
  }

  /** Text of all tokens. */
  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  /** Set or remove a class of a token; an index without a token does nothing. */
  mark(index, name, on = true) {
    this.tokens[index]?.element.classList.toggle(name, on);
  }

  #indexOf(element) {
    return this.tokens.findIndex((token) => token.element === element);
  }

  #enter(element) {
    const index = this.#indexOf(element);
    if (index < 0) return;
    if (this.alternatives) showAlternatives(this.tokens[index]);
    this.onEnter(index);
  }

  #leave() {
    hideAlternatives();
    this.onLeave();
  }

  #key(event) {
    const index = this.#indexOf(event.target);
    if (index < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.tokens.length - 1;
    const moves = {
      ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last,
      ArrowDown: this.#inNextLine(index, 1), ArrowUp: this.#inNextLine(index, -1),
    };
    const next = moves[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (next < 0 || next > last) return;
    this.tokens[index].element.tabIndex = -1;
    this.tokens[next].element.tabIndex = 0;
    this.tokens[next].element.focus();
  }

  /** Return the index of the token that is nearest in the line below (step 1) or above (step -1). */
  #inNextLine(index, step) {
    const from = this.tokens[index].element.getBoundingClientRect();
    let line = null;
    let nearest = index;
    let distance = Infinity;
    for (let at = index + step; at >= 0 && at < this.tokens.length; at += step) {
      const box = this.tokens[at].element.getBoundingClientRect();
      const away = step * (box.top - from.top);
      if (away < from.height / 2) continue;
      line ??= away;
      if (away > line + from.height / 2) break;
      if (Math.abs(box.left - from.left) < distance) {
        distance = Math.abs(box.left - from.left);
        nearest = at;
      }
    }
    return nearest;
  }
}

const box = make("div", { className: "alternatives", id: "alternatives", role: "tooltip", hidden: true });
let described = null;

/** Show a token's probability and its alternatives beside it. */
function showAlternatives({ element, token, logprob, top }) {
  hideAlternatives();
  if (!box.isConnected) document.body.append(box);
  const heading = make("h3", {}, make("code", { textContent: visible(token) }));
  heading.append(make("span", { textContent: logprob === null ? "no probability" : percent(Math.exp(logprob)) }));
  box.replaceChildren(heading);
  if (top !== null) box.append(rows(token, logprob, top));
  described = element;
  element.setAttribute("aria-describedby", box.id);
  box.hidden = false;
  place(element);
}

function rows(token, logprob, top) {
  const list = make("ol");
  const sorted = [...top].sort((one, other) => other.logprob - one.logprob);
  const chosen = sorted.findIndex((other) => other.token === token && Math.abs(other.logprob - logprob) < 1e-4);
  sorted.forEach((other, index) => {
    const probability = Math.exp(other.logprob);
    const bar = make("i");
    bar.style.width = `${100 * probability}%`;
    const name = make("code", { textContent: visible(other.token) });
    const item = make("li", {}, bar, name, make("span", { textContent: percent(probability) }));
    if (index === chosen) item.className = "chosen";
    list.append(item);
  });
  return list;
}

function hideAlternatives() {
  box.hidden = true;
  described?.removeAttribute("aria-describedby");
  described = null;
}

/** Put the box under an element, or above it where there is no room, within the window. */
function place(element) {
  const around = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  const left = Math.min(Math.max(8, around.left), document.documentElement.clientWidth - width - 8);
  const below = around.bottom + 6;
  const top = below + height > innerHeight && around.top > height + 6 ? around.top - height - 6 : below;
  box.style.left = `${left + scrollX}px`;
  box.style.top = `${top + scrollY}px`;
}
