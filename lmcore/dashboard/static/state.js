// What the user has chosen. It is kept in the URL's hash, so that it can be shared and survives a reload.

export const SMOOTHING = [0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999];
const AXES = ["step", "tokens", "time"];

// Read a hash. `runs` is null as long as the user has chosen none, and the newest are shown.
export function parse(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const smooth = Number(query.get("smooth"));
  return {
    runs: query.has("run") ? [...new Set(query.getAll("run"))].filter(Boolean) : null,
    metric: query.get("metric") || "loss",
    x: AXES.includes(query.get("x")) ? query.get("x") : "step",
    smooth: smooth > 0 && smooth < 1 ? smooth : 0,
    logX: (query.get("log") || "").includes("x"),
    logY: (query.get("log") || "").includes("y"),
    sample: /^\d+$/.test(query.get("sample") || "") ? Number(query.get("sample")) : null,
  };
}

// Write a state as a hash; what has its default is left out.
export function serialize(state) {
  const query = new URLSearchParams();
  if (state.runs) (state.runs.length ? state.runs : [""]).forEach((run) => query.append("run", run));
  if (state.metric !== "loss") query.set("metric", state.metric);
  if (state.x !== "step") query.set("x", state.x);
  if (state.smooth) query.set("smooth", state.smooth);
  const log = (state.logX ? "x" : "") + (state.logY ? "y" : "");
  if (log) query.set("log", log);
  if (state.sample !== null) query.set("sample", state.sample);
  return `#${query}`;
}
