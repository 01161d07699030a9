// Messages about what went wrong, and the wait before a request is sent again.

import { find, make } from "./dom.js";

/** A place for one message. */
export class Notice {
  constructor(element) {
    this.element = element;
  }

  /** Show a message; `calm` where nothing has failed for good. Further children, such as a button, follow it. */
  show(message, { calm = false, children = [] } = {}) {
    this.element.classList.toggle("calm", calm);
    this.element.replaceChildren(make("span", { textContent: message }), ...children);
    this.element.hidden = false;
  }

  hide() {
    this.element.hidden = true;
    this.element.replaceChildren();
  }

  /** Count down the seconds until a request is sent again; a button ends the wait. Rejects when `signal` aborts. */
  async wait(message, seconds, signal) {
    let left = Math.max(1, Math.ceil(seconds));
    const text = make("span");
    const button = make("button", { type: "button", textContent: "Try now" });
    const line = () => { text.textContent = `Trying again in ${left} s.`; };
    line();
    this.show(message, { calm: true, children: [text, button] });
    try {
      await new Promise((resolve, reject) => {
        const timer = setInterval(() => (--left <= 0 ? end(resolve) : line()), 1000);
        const abort = () => end(() => reject(signal.reason));
        const end = (how) => {
          clearInterval(timer);
          signal.removeEventListener("abort", abort);
          how();
        };
        button.addEventListener("click", () => end(resolve));
        signal.addEventListener("abort", abort);
      });
    } finally {
      this.hide();
    }
  }
}

/** Say something to screen readers that the eye sees elsewhere. */
export function announce(message) {
  find("status").textContent = message;
}
