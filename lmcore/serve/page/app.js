// The page of a server: generate text or chat, look at the tokens' alternatives and at the attention.

import { chatTokens, completionTokens } from "./answers.js";
import { ask, events } from "./api.js";
import { Attention } from "./attention.js";
import { find, make, rate, tokenCount, whole } from "./dom.js";
import { keyField } from "./key.js";
import { announce, Notice } from "./notice.js";
import { Runner } from "./runner.js";
import { Sampling } from "./sampling.js";
import { themeButton } from "./theme.js";
import { TokenView } from "./tokens.js";

const ALTERNATIVES = 5;

const sampling = new Sampling(find("sampling"));
const notice = new Notice(find("notice"));
const attention = new Attention(shownText);
const runner = new Runner(notice, { begin, follow, end });
let model = null;
let messages = []; // of the chat
let last = { prompt: "", view: null };

function shownText() {
  if (last.view === null) return chatting() ? "" : find("prompt").value;
  return last.prompt + last.view.text;
}

function chatting() {
  return document.querySelector('input[name="mode"]:checked').value === "chat";
}

async function describe() {
  try {
    model = await ask("info");
  } catch (error) {
    find("model").textContent = "No description of the model";
    runner.report(error);
    return;
  }
  notice.hide();
  document.title = `${model.model} · twinlm`;
  find("package").textContent = model.package;
  find("model").textContent = model.model;
  find("facts").textContent = [
    `${whole(model.parameters)} parameters`, `${model.n_layers} layers`, `${model.n_heads} heads`,
    `vocabulary ${whole(model.vocab_size)}`, `context ${whole(model.context)}`, model.device,
    `${model.slots} ${model.slots === 1 ? "slot" : "slots"}`,
  ].join(" · ");
  find("modes").hidden = !model.chat;
  const room = Math.max(1, Math.floor(model.context / 2)); // leaves as much for the prompt
  const { seed, ...defaults } = model.sampling;
  sampling.fill({ ...defaults, max_tokens: Math.min(defaults.max_tokens ?? room, room) });
  if (find("prompt").value === find("prompt").defaultValue) find("prompt").value = defaults.prompt ?? "";
  attention.describe(model);
}

/** Return where a request goes, its body, and what reads the tokens of its events. */
function request() {
  const shared = { model: model.model, stream: true, ...sampling.read() };
  if (!chatting()) {
    const body = { prompt: find("prompt").value, logprobs: ALTERNATIVES, ...shared };
    return { path: "v1/completions", body, tokensOf: completionTokens };
  }
  const system = find("system").value.trim();
  const all = [...(system ? [{ role: "system", content: system }] : []), ...messages];
  const body = { messages: all, logprobs: true, top_logprobs: ALTERNATIVES, ...shared };
  return { path: "v1/chat/completions", body, tokensOf: chatTokens };
}

/** Show the prompt or message, and make the place for the tokens that follow it. */
async function begin() {
  if (model === null) await describe();
  if (model === null || (chatting() && find("prompt").value.trim() === "")) return null;
  modes(true);
  const text = make("div", { className: "text generated", role: "group" });
  text.setAttribute("aria-label", "Generated tokens");
  const view = new TokenView(text);
  if (!chatting()) {
    const prompt = find("prompt").value;
    find("output").replaceChildren(text);
    text.append(make("span", { className: "given", textContent: prompt }));
    last = { prompt, view };
    return { view, ...request() };
  }
  const message = { role: "user", content: find("prompt").value };
  if (messages.length === 0) find("output").replaceChildren();
  messages.push(message);
  find("prompt").value = "";
  const user = make("div", { className: "turn user" }, make("b", { textContent: "You" }));
  user.append(make("div", { className: "text", textContent: message.content }));
  const reply = make("div", { className: "turn assistant" }, make("b", { textContent: model.model }), text);
  find("output").append(user, reply);
  last = { prompt: "", view };
  return { view, message, elements: [user, reply], ...request() };
}

/** Keep a reply for the messages that follow; a message that got none goes back into the field. */
function end({ view, message, elements }) {
  modes(false);
  view.element.classList.remove("generated");
  if (message === undefined) return;
  if (view.tokens.length) {
    messages.push({ role: "assistant", content: view.text });
    return;
  }
  messages.pop();
  elements.forEach((element) => element.remove());
  if (find("prompt").value === "") find("prompt").value = message.content;
}

async function follow({ view, path, body, tokensOf }, signal) {
  const sent = performance.now();
  let first = null;
  let reason = null;
  for await (const event of events(path, body, signal)) {
    const choice = event.choices?.[0];
    if (!choice) continue;
    tokensOf(choice).forEach((token) => view.add(token));
    reason = choice.finish_reason ?? reason;
    if (view.tokens.length) first ??= { at: performance.now(), count: view.tokens.length };
    find("stats").textContent = speed(view.tokens.length, sent, first, body.seed);
  }
  const end = { stop: "reached its end", length: "reached the maximum number of tokens" }[reason] ?? "ended";
  announce(`The text ${end}, after ${tokenCount(view.tokens.length)}.`);
}

/** Describe the number of tokens, the tokens per second after the first, and the time of the first. */
function speed(count, sent, first, seed) {
  if (first === null) return `0 tokens · seed ${seed}`;
  const seconds = (performance.now() - first.at) / 1000;
  const parts = [tokenCount(count)];
  if (count > first.count && seconds > 0) parts.push(rate((count - first.count) / seconds));
  parts.push(`first after ${((first.at - sent) / 1000).toFixed(2)} s`, `seed ${seed}`);
  return parts.join(" · ");
}

/** Let the mode be chosen, or not while a text is being generated. */
function modes(fixed) {
  find("restart").disabled = fixed;
  document.querySelectorAll('input[name="mode"]').forEach((input) => { input.disabled = fixed; });
}

/** Empty the output, and change the labels to those of the chosen mode. */
function changeMode() {
  const chat = chatting();
  messages = [];
  last = { prompt: "", view: null };
  find("output").replaceChildren();
  find("stats").textContent = "";
  notice.hide();
  find("system-row").hidden = find("restart").hidden = !chat;
  find("prompt-label").textContent = chat ? "Message" : "Prompt";
  find("prompt").rows = chat ? 3 : 6;
  find("generate").textContent = chat ? "Send" : "Generate";
  find("output-title").textContent = chat ? "Chat" : "Text";
  find("attention-hint").textContent = chat
    ? "The text is the last reply alone, without what the chat template puts around it."
    : find("attention-hint").dataset.text;
}

find("attention-hint").dataset.text = find("attention-hint").textContent;
find("restart").addEventListener("click", changeMode);
find("modes").addEventListener("change", changeMode);
themeButton(find("theme"));
keyField(describe);
changeMode();
describe();
