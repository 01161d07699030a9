// Numbers and times as text, and the ticks of an axis.

const SUFFIXES = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

// 1234567 -> 1.23M; small integers as they are.
export function count(value) {
  const [size, suffix] = SUFFIXES.find(([size]) => Math.abs(value) >= size) || [1, ""];
  return trim((value / size).toPrecision(3)) + suffix;
}

export const whole = (value) => value.toLocaleString("en-US");

// A metric's value with five digits.
export function number(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size < 1e-3 || size >= 1e7) return value.toExponential(3);
  if (size >= 1e4) return whole(Math.round(value));
  return trim(value.toPrecision(5));
}

export function duration(seconds) {
  if (seconds < 60) return `${trim(seconds.toPrecision(3))} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${whole(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}

// How long ago a time in seconds since 1970 was.
export function age(time) {
  const seconds = Math.max(0, Date.now() / 1000 - time);
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([size]) => seconds >= size) || [1, "s"];
  return seconds < 5 ? "now" : `${Math.floor(seconds / size)} ${unit} ago`;
}

// The positions to label between two values, on a linear or logarithmic axis.
export function ticks(low, high, wanted, log) {
  if (log && high / low >= 20) {
    const decades = Math.log10(high / low);
    const steps = decades <= wanted / 3 ? [1, 2, 5] : [1];
    const every = Math.max(1, Math.ceil(decades / wanted));
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += every) {
      for (const step of steps) found.push(Number(`${step}e${power}`));
    }
    return found.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / wanted;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high; index += 1) {
    found.push(digits <= 100 ? Number((index * step).toFixed(digits)) : index * step);
  }
  return log ? found.filter((value) => value > 0) : found;
}

export function tick(value) {
  const size = Math.abs(value);
  if (size >= 1000) return count(value);
  if (value !== 0 && size < 1e-3) return value.toExponential().replace("e-", "e−");
  return String(Number(value.toPrecision(6))).replace("-", "−");
}

// The unit that an axis of seconds is labelled in.
export function timeUnit(seconds) {
  return [[7200, "h", 3600], [120, "min", 60]].find(([from]) => seconds >= from) || [0, "s", 1];
}

function trim(text) {
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}
