// Beside the slice: the window's presets and sliders over the image's histogram, the value under the pointer, the row.

import { el, number, words } from "./dom.js";
import { histogram } from "./windowing.js";

const BARS = 128;
const PIECES = 1000;
const TECHNICAL = new Set(["key", "shard", "offset", "length", "codec", "sha256", "pixel_hash"]);

/** The panel; `actions`: change(window), reset(), only(column, value). */
export function drawPanel(info, actions) {
  let range = { low: 0, high: 1, least: 0.001 };
  let scale = { slope: 1, intercept: 0 };
  let counts = [];
  let rowDrawn = false;

  const value = el("output", { class: "value-here", "aria-live": "off" }, "");
  const plot = el("canvas", { class: "histogram", width: 512, height: 96, role: "img", "aria-label": "Histogram of the slice, with the window" });
  const sliders = {
    centre: slider("Centre", (centre) => around(centre, width())),
    width: slider("Width", (wide) => around(centre(), wide)),
  };
  const ends = { low: end("Black at", (low) => ({ low })), high: end("White at", (high) => ({ high })) };
  const inverted = el("input", { type: "checkbox", onchange: (event) => actions.change({ inverted: event.target.checked }) });
  const presets = el("div", { class: "presets", role: "group", "aria-label": "Windows" });
  const grey = el("div", { class: "grey" }, presets, plot, sliders.centre.node, sliders.width.node, el("div", { class: "row ends" }, ends.low.node, ends.high.node));
  const table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The sample's row" });
  const node = el("div", { class: "panel" },
    el("section", { "aria-label": "Window" }, el("div", { class: "row" }, el("h3", {}, "Window"), value), grey,
      el("div", { class: "row" }, el("label", { class: "control" }, inverted, "inverted (I)"), el("button", { type: "button", class: "small", onclick: actions.reset }, "Reset (R)"))),
    el("section", { class: "of-row", "aria-label": "Row" }, el("h3", {}, "Row in the catalog"), table));
  let shown = { low: 0, high: 1, inverted: false };
  const width = () => shown.high - shown.low;
  const centre = () => (shown.low + shown.high) / 2;
  const around = (middle, wide) => ({ low: middle - wide / 2, high: middle + wide / 2 });

  function slider(name, made) {
    const input = el("input", { type: "range", min: 0, max: PIECES, step: 1, "aria-label": `Window ${name.toLowerCase()}` });
    const said = el("span", { class: "said" });
    input.addEventListener("input", () => actions.change(made(fromPiece(name, Number(input.value)))));
    return { input, said, node: el("label", { class: "slide" }, el("span", {}, name), input, said) };
  }

  /** Width grows by factors: narrow windows need the finer steps. */
  function fromPiece(name, piece) {
    const share = piece / PIECES;
    if (name === "Centre") return range.low + share * (range.high - range.low);
    return range.least * ((range.high - range.low) / range.least) ** share;
  }

  function toPiece(name, wanted) {
    const whole = range.high - range.low;
    const share = name === "Centre" ? (wanted - range.low) / whole : Math.log(wanted / range.least) / Math.log(whole / range.least);
    return Math.round(PIECES * Math.min(1, Math.max(0, share)));
  }

  function end(name, made) {
    const input = el("input", { type: "number", step: "any", "aria-label": name });
    input.addEventListener("change", () => input.value !== "" && actions.change(made(Number(input.value))));
    return { input, node: el("label", {}, name, input) };
  }

  function drawPlot() {
    const context = plot.getContext("2d");
    const style = getComputedStyle(node);
    const [wide, tall] = [plot.width, plot.height];
    context.clearRect(0, 0, wide, tall);
    const place = (wanted) => ((wanted - range.low) / (range.high - range.low)) * wide;
    const [left, right] = [place(shown.low), place(shown.high)];
    context.fillStyle = style.getPropertyValue("--accent-soft");
    context.fillRect(left, 0, Math.max(1, right - left), tall);
    // a root, so that the few pixels of bone are seen beside the many of air
    const largest = Math.max(1, ...counts) ** 0.35;
    context.fillStyle = style.getPropertyValue("--accent");
    counts.forEach((count, bar) => {
      const height = (count ** 0.35 / largest) * (tall - 4);
      context.fillRect((bar * wide) / BARS, tall - height, wide / BARS - 0.6, height);
    });
    context.fillStyle = style.getPropertyValue("--ink");
    for (const edge of [left, right]) context.fillRect(Math.min(wide - 2, Math.max(0, edge - 1)), 0, 2, tall);
  }

  function drawPresets(row) {
    const own = row.shown;
    const named = row.intensity_unit === "HU" ? Object.entries(info.windows) : [];
    const buttons = named.map(([name, window], place) => [name === "soft" ? "soft tissue" : name, window, place + 1]);
    if (!named.length) buttons.push([row.intensity_unit === "display" || row.intensity_unit === "P-value" ? "full range" : "1st to 99th percentile", own]);
    buttons.push(["this image", { low: range.low, high: range.high }]);
    presets.replaceChildren(...buttons.map(([name, window, key]) => el("button", {
      type: "button", class: "small", "aria-keyshortcuts": key ? String(key) : null, title: `${number(window.low)} to ${number(window.high)} ${row.intensity_unit}`,
      onclick: () => actions.change({ low: window.low, high: window.high }),
    }, key ? `${name} (${key})` : name)));
  }

  return {
    node,
    range: () => range,
    hasRow: () => rowDrawn,

    /** Another image: its histogram and the ends of its values. */
    image(row, image, window) {
      grey.hidden = row.channels === 3;
      scale = { slope: row.store_slope, intercept: row.store_intercept };
      const [low, high] = [image.low, image.high].map((stored) => scale.slope * stored + scale.intercept).sort((a, b) => a - b);
      range = { low, high: high > low ? high : low + Math.abs(scale.slope || 1), least: Math.abs(scale.slope) || 1e-6 };
      if (row.channels !== 3) counts = histogram(image.stored, scale, range.low, range.high, BARS);
      drawPresets(row);
      this.window(window);
    },

    /** Another window. */
    window(window) {
      shown = window;
      inverted.checked = shown.inverted;
      for (const [name, now] of [["Centre", centre()], ["Width", width()]]) {
        const one = sliders[name.toLowerCase()];
        one.input.value = toPiece(name, now);
        one.said.textContent = number(now);
        one.input.setAttribute("aria-valuetext", number(now));
      }
      const digits = (wanted) => String(Number(wanted.toPrecision(5)));
      ends.low.input.value = digits(shown.low);
      ends.high.input.value = digits(shown.high);
      drawPlot();
    },

    /** The value under the pointer. */
    value(text) {
      value.textContent = text;
    },

    /** The whole row; null when it cannot be had. */
    row(row) {
      rowDrawn = row !== null;
      const stated = row ? info.columns.filter((column) => row[column.name] !== null) : [];
      const unstated = row ? info.columns.filter((column) => row[column.name] === null) : [];
      const place = (column) => info.columns.length * Number(TECHNICAL.has(column.name)) + Object.keys(row).indexOf(column.name);
      stated.sort((a, b) => place(a) - place(b));
      const top = table.scrollTop;
      table.replaceChildren(el("table", {}, el("tbody", {}, stated.map((column) => line(column, row[column.name])))),
        unstated.length > 0 && el("p", { class: "hint" }, `Not stated: ${unstated.map((column) => words(column.name)).join(", ")}.`));
      table.scrollTop = top;
    },
  };

  function line(column, found) {
    const values = Array.isArray(found) ? found : [found];
    const unit = column.unit && column.unit !== "intensity_unit" ? ` ${column.unit}` : "";
    const text = values.map((one) => (typeof one === "number" ? number(one) : String(one))).join(", ");
    const filterable = !TECHNICAL.has(column.name);
    return el("tr", {}, el("th", { scope: "row", title: column.meaning }, words(column.name)),
      el("td", {}, el("bdi", {}, text), unit),
      el("td", {}, filterable && el("button", {
        type: "button", class: "only", title: `Only samples with this ${words(column.name)}`, "aria-label": `Only samples with ${words(column.name)} ${text}`,
        onclick: () => actions.only(column.name, String(values[0])),
      }, "only")));
  }
}
