// What the modules share to build the page. Text enters it by textContent only, so that none is read as HTML.

/** Return the element with an id. */
export const find = (id) => document.getElementById(id);

/** Return a new element with properties (`className`, `textContent`, …) and children, which may be strings. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const count = new Intl.NumberFormat("en");
/** Format a whole number: 1,234. */
export const whole = (number) => count.format(number);

/** Return text with its white space and control characters visible, to show a token by itself. */
export function visible(text) {
  if (text === "") return "∅";
  return text
    .replace(/ /g, "␣")
    .replace(/\n/g, "⏎")
    .replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f\u007f]/g, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

/** Format a probability: 12.3 %, with two digits where it is small. */
export function percent(probability) {
  const value = 100 * probability;
  if (value === 0 || value >= 9.95) return `${value.toFixed(1)} %`;
  return value >= 0.001 ? `${value.toPrecision(2)} %` : "< 0.001 %";
}

/** Format a number of tokens: 1 token, 2 tokens. */
export const tokenCount = (number) => `${whole(number)} ${number === 1 ? "token" : "tokens"}`;

/** Format tokens per second, with a decimal where there are few. */
export const rate = (perSecond) => `${perSecond < 100 ? perSecond.toFixed(1) : whole(Math.round(perSecond))} tokens/s`;
