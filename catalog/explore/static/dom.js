// Elements, made without markup: whatever a text holds, it stays text.

/** An element; `on…` attributes are listeners, children that are null or false are left out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "selected") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Put other children into a node, and the focus back where it was: on what has the same data-focus. */
export function refill(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  const caret = focused && "selectionStart" in document.activeElement ? document.activeElement.selectionStart : null;
  node.replaceChildren(...children.flat().filter(Boolean));
  if (!focused) return;
  const again = [...node.querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === focused);
  again?.focus({ preventScroll: true });
  if (caret !== null && again?.type === "text") again.setSelectionRange(caret, caret);
}

/** A button that copies a text, and says so. */
export function copyButton(label, text) {
  const button = el("button", { type: "button", class: "small", onclick: copy }, label);
  async function copy() {
    let done = true;
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      done = copyBySelection(text());
    }
    button.textContent = done ? "Copied" : "Select it and copy";
    setTimeout(() => (button.textContent = label), 1600);
  }
  return button;
}

/** For a page that is not on this machine's own address, where browsers have no clipboard. */
function copyBySelection(text) {
  const area = el("textarea", { value: text, class: "off-screen", "aria-hidden": "true" });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

/** A number for a person: four digits that matter, thousands apart. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const digits = Number.isInteger(value) || Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
  const [whole, rest] = digits.split(".");
  const grouped = /^-?\d+$/.test(whole) ? whole.replace(/\B(?=(\d{3})+$)/g, ",") : whole;
  return (rest === undefined ? grouped : `${grouped}.${rest}`).replace("-", "−");
}

/** A column's name for a person. */
export const words = (column) => column.replaceAll("_", " ");
