// Requests to the server: the key, errors as sentences, and streams of server-sent events.

const KEY = "twinlm-key";
let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch { // storage may be switched off: the key is then kept in memory
}

/** Use an API key from now on, until the tab is closed. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch { // as above
  }
}

/** A request that failed, with a sentence for the reader. */
export class ApiError extends Error {
  /** `status` is HTTP's, 0 if there was no answer; `retryAfter` is in seconds, null if the server named none. */
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Send a request and return the response. A body makes it a POST of JSON. Throws ApiError. */
export async function send(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?", 0);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** Send a request and return the value of its JSON. Throws ApiError. */
export async function ask(path, body, signal) {
  return (await send(path, body, signal)).json();
}

async function failure(response) {
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const said = await response.json().then((value) => value?.error?.message ?? value?.error, () => null);
  const detail = typeof said === "string" ? said : `HTTP ${response.status} ${response.statusText}`;
  return new ApiError(sentence(response.status, detail), response.status, Number.isFinite(seconds) ? seconds : null);
}

function sentence(status, detail) {
  if (status === 401) return "The server asks for an API key, and has no such key.";
  if (status === 429) return "The server is busy with other requests.";
  if (status >= 500) return `The server could not answer: ${detail}`;
  return `The server rejects the request: ${detail}`;
}

/** Send a request and yield the values of the server-sent events that answer it, up to [DONE]. Throws ApiError. */
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) break;
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = dataOf(block);
        if (data === "[DONE]") return;
        if (data === "") continue; // a comment that keeps the connection open
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(`The server stopped: ${event.error.message ?? event.error}`, 0);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // already closed where the server has gone
  }
  throw new ApiError("The connection ended before the text was complete. Is the server still running?", 0);
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection to the server was lost.", 0);
  }
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}
