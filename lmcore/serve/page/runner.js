// What the buttons and keys of a page start and stop: one stream at a time, sent again where the server is busy.

import { ApiError } from "./api.js";
import { find } from "./dom.js";
import { askForKey } from "./key.js";
import { announce } from "./notice.js";

const RETRIES = 5;

/** Runs one stream at a time, from the form with the buttons `generate` and `stop`, by Ctrl+Enter and Escape. */
export class Runner {
  /**
   * `begin()` makes the places for what will come, and returns them, or null where there is nothing to do;
   * `follow(places, signal)` reads the stream; `end(places, stopped)` is called at its end, however it came.
   */
  constructor(notice, { begin, follow, end }) {
    Object.assign(this, { notice, begin, follow, end, abort: null });
    find("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    find("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.start();
      }
      if (event.key === "Escape") this.stop();
    });
  }

  stop() {
    this.abort?.abort();
  }

  async start() {
    if (this.abort || !find("form").reportValidity()) return;
    this.abort = new AbortController();
    const { signal } = this.abort;
    let places = null;
    try {
      this.notice.hide();
      this.#setBusy(true);
      places = await this.begin();
      if (places !== null) await this.#retried(places, signal);
    } catch (error) {
      if (signal.aborted) announce("Stopped.");
      else this.report(error);
    } finally {
      this.abort = null;
      this.#setBusy(false);
      if (places !== null) this.end(places, signal.aborted);
    }
  }

  /** Show what went wrong, and ask for a key where that is the reason. */
  report(error) {
    if (!(error instanceof ApiError)) throw error;
    this.notice.show(error.message);
    if (error.status === 401) askForKey();
  }

  async #retried(places, signal) {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.follow(places, signal);
        return;
      } catch (error) {
        if (error.status !== 429 || attempt > RETRIES) throw error;
        await this.notice.wait(error.message, error.retryAfter ?? 2 ** attempt, signal);
      }
    }
  }

  #setBusy(busy) {
    const focused = document.activeElement;
    document.documentElement.classList.toggle("busy", busy);
    find("generate").disabled = busy;
    find("stop").disabled = !busy;
    if (focused === find("generate") && busy) find("stop").focus(); // a disabled button would lose it
    if (focused === find("stop") && !busy) find("generate").focus();
  }
}
