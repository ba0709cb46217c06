"use strict";

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Strings among the children become text, never markup. */
function el(name, attributes = {}, ...children) {
  return dress(document.createElement(name), attributes, children);
}

/** An SVG element; see el. */
function svg(name, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, name), attributes, children);
}

/** `on` holds listeners, `vars` style properties; null and false leave an attribute out. */
function dress(node, { on = {}, vars = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const [name, value] of Object.entries(vars)) node.style.setProperty(name, value);
  for (const [name, listener] of Object.entries(on)) node.addEventListener(name, listener);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** Text for screen readers alone. */
function spoken(text) {
  return el("span", { class: "spoken" }, text);
}

/** A term and what it is, for a list of them. */
function pair(name, value) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value));
}

/** A number with its sign, and a true minus. */
function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return (value < 0 ? "−" : "+") + text;
}

/** The class that gives a gain or a loss its colour. */
function tone(value) {
  return value > 0 ? "up" : value < 0 ? "down" : "";
}

/** A number as short as it reads well. */
function plain(value) {
  const size = Math.abs(value);
  const text = size !== 0 && (size < 0.001 || size >= 1e5)
    ? value.toExponential(1)
    : value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 3);
  return text.replace("-", "−");
}

/** A probability whose logarithm is given, as a percentage. */
function percent(logProb) {
  const value = 100 * Math.exp(logProb);
  if (value < 0.001) return "under 0.001\u00a0%";
  return `${value >= 10 ? value.toFixed(0) : Number(value.toPrecision(value < 0.1 ? 1 : 2))}\u00a0%`;
}

/** "1 search", "2 searches". */
function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
