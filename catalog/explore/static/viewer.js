// One slice: its stored values in the browser, a window over them, its neighbours in the series, its row.

import { ask, isOld } from "./api.js";
import { byId, copyButton, el, number } from "./dom.js";
import { drawPanel } from "./panel.js";
import { load, warm } from "./slices.js";
import { note, setOnly } from "./state.js";
import { greys, paintColour, paintGrey } from "./windowing.js";

const ZOOMS = [0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8];
let info;
let asked;
let series = [];
let at = -1;
let slice = null;
let image = null;
let shown = null;
let zoom = null;
let turn = 0;
let parts = {};
let panel = null;

/** What a picture shows, in words. */
export function caption(row) {
  const place = row.slice_index !== null && row.slice_count > 1 ? `, slice ${row.slice_index + 1}` : "";
  return `${row.modality}, ${row.body_part ?? "body part not stated"}${place}, ${row.width} by ${row.height} pixels`;
}

export function startViewer(about, callbacks) {
  info = about;
  asked = callbacks;
  build();
}

/** Open a sample, or go to it when the viewer is open; `known`: its row, where the page has it. */
export async function openViewer(key, known) {
  if (slice?.key === key && byId("viewer").open) return;
  if (!byId("viewer").open) {
    byId("viewer").showModal();
    parts.stage.focus();
  }
  const place = series.findIndex((row) => row.key === key);
  if (place >= 0) {
    at = place;
    await show(series[place]);
    return;
  }
  series = known ? [known] : [];
  at = 0;
  shown = null;
  zoom = null;
  // the image first: its neighbours can wait for it
  const showing = known && show(known);
  const neighbours = ask(`api/series/${key}`, null, "series");
  neighbours.catch(() => {});
  await showing;
  try {
    const found = await neighbours;
    if (known && slice?.key !== key) return;
    series = found;
  } catch (error) {
    if (isOld(error)) return;
    if (!known) {
      byId("viewer").close();
      throw error;
    }
  }
  at = series.findIndex((row) => row.key === key);
  if (at < 0) {
    byId("viewer").close();
    throw new Error("no sample of this data set has that key");
  }
  if (known) {
    drawPlace();
    warmAround();
  } else await show(series[at]);
}

export function closeViewer() {
  if (byId("viewer").open) byId("viewer").close();
}

// ---- showing

async function show(row) {
  const mine = ++turn;
  const before = slice;
  slice = row;
  drawPlace();
  if (row.series !== before?.series || row.intensity_unit !== before?.intensity_unit) shown = null;
  let found;
  try {
    found = await load(row);
  } catch (error) {
    if (mine === turn) {
      image = null;
      parts.failed.hidden = false;
      parts.failed.textContent = error.message;
      parts.canvas.hidden = true;
    }
    return;
  }
  if (mine !== turn) return;
  parts.failed.hidden = true;
  parts.canvas.hidden = false;
  image = { ...found, row };
  shown ??= { ...row.shown, inverted: false };
  parts.canvas.width = row.width;
  parts.canvas.height = row.height;
  parts.canvas.setAttribute("aria-label", caption(row));
  fit();
  paint();
  // what is beside the slice is drawn after it
  setTimeout(() => {
    if (mine !== turn) return;
    panel.image(row, image, shown);
    warmAround();
    showRow(row, mine);
  });
}

function paint() {
  if (!image || !shown) return;
  // what is on the screen may still be the slice before
  const { row } = image;
  const context = parts.canvas.getContext("2d");
  const data = context.createImageData(row.width, row.height);
  if (row.channels === 3) paintColour(image.stored, data.data, shown.inverted);
  else {
    const scale = { slope: row.store_slope, intercept: row.store_intercept };
    paintGrey(image.stored, greys(image.high, { ...scale, ...shown }), data.data);
  }
  context.putImageData(data, 0, 0);
}

function drawPlace() {
  parts.title.replaceChildren(el("b", {}, slice.modality), " ", el("bdi", {}, slice.body_part ?? "body part not stated"));
  parts.key.textContent = slice.key;
  parts.slider.max = Math.max(0, series.length - 1);
  parts.slider.value = at;
  parts.slider.disabled = series.length < 2;
  const where = slice.slice_position === null ? "" : `, at ${number(slice.slice_position)} mm`;
  parts.place.textContent = `${at + 1} of ${series.length || 1} in the series${where}`;
  parts.slider.setAttribute("aria-valuetext", parts.place.textContent);
}

function warmAround() {
  for (const near of [1, -1, 2, -2]) if (series[at + near]) warm(series[at + near]);
}

/** The whole row, when one has stopped long enough to read it. */
function showRow(row, mine) {
  const wait = panel.hasRow() ? 120 : 0;
  setTimeout(async () => {
    if (mine !== turn) return;
    try {
      panel.row(await ask(`api/samples/${row.key}`, null, "row"));
    } catch (error) {
      if (!isOld(error)) panel.row(null);
    }
  }, wait);
}

// ---- moving

function step(by) {
  goTo(at + by);
}

function goTo(place) {
  const to = Math.min(series.length - 1, Math.max(0, place));
  if (to === at || !series[to]) return;
  at = to;
  note("key", series[to].key);
  show(series[to]);
}

function change(window) {
  shown = { ...shown, ...window };
  paint();
  panel.window(shown);
}

/** The size on the screen: as large as fits, or a multiple of the stored size; pixels in their true proportions. */
function fit() {
  if (!slice) return;
  const { pixel_spacing_row: down, pixel_spacing_column: across } = slice;
  const tall = down && across ? Math.min(4, Math.max(0.25, down / across)) : 1;
  const room = parts.stage.getBoundingClientRect();
  const whole = Math.min(room.width / slice.width, room.height / (slice.height * tall));
  const scale = zoom ?? whole;
  parts.canvas.style.width = `${Math.max(1, Math.floor(slice.width * scale))}px`;
  parts.canvas.style.height = `${Math.max(1, Math.floor(slice.height * tall * scale))}px`;
  parts.canvas.classList.toggle("crisp", scale >= 3);
  parts.zoom.textContent = zoom === null ? "fit" : `${Math.round(100 * zoom)} %`;
}

function zoomBy(by) {
  const now = zoom ?? parts.canvas.getBoundingClientRect().width / slice.width;
  const next = by > 0 ? ZOOMS.find((one) => one > now * 1.01) : ZOOMS.findLast((one) => one < now * 0.99);
  zoom = next ?? now;
  fit();
}

function setZoom(value) {
  zoom = value;
  fit();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target instanceof HTMLInputElement && event.target !== parts.slider;
  if (typing || (event.target instanceof HTMLElement && event.target.closest(".scroll, pre") && /^(Arrow|Page|Home|End)/.test(event.key))) return;
  const names = Object.keys(info.windows);
  const actions = {
    ArrowDown: () => step(1), ArrowRight: () => step(1), ArrowUp: () => step(-1), ArrowLeft: () => step(-1),
    PageDown: () => step(10), PageUp: () => step(-10), Home: () => goTo(0), End: () => goTo(series.length - 1),
    n: () => asked.step(slice.key, 1), p: () => asked.step(slice.key, -1), i: () => change({ inverted: !shown.inverted }),
    "+": () => zoomBy(1), "=": () => zoomBy(1), "-": () => zoomBy(-1), 0: () => setZoom(null), r: () => change({ ...slice.shown, inverted: false }),
  };
  const preset = slice?.intensity_unit === "HU" && names[Number(event.key) - 1];
  const action = preset ? () => change(info.windows[preset]) : actions[event.key];
  if (!action || !slice) return;
  event.preventDefault();
  action();
}

let wheeled = 0;
function wheel(event) {
  event.preventDefault();
  if (event.ctrlKey) {
    zoomBy(event.deltaY < 0 ? 1 : -1);
    return;
  }
  wheeled += event.deltaMode === 0 ? event.deltaY : 40 * event.deltaY;
  // a notch of a wheel is about 100 pixels; a touchpad sends many small ones
  const steps = Math.trunc(wheeled / 40);
  if (steps === 0) return;
  wheeled = 0;
  step(Math.sign(steps));
}

/** Dragging sets the window: across for its width, up and down for its centre. With Shift it moves the image. */
function drag(event) {
  if (event.button !== 0 || !image) return;
  const start = { x: event.clientX, y: event.clientY, left: parts.stage.scrollLeft, top: parts.stage.scrollTop, ...shown };
  const range = panel.range();
  parts.stage.setPointerCapture(event.pointerId);
  const move = (moved) => {
    const [dx, dy] = [moved.clientX - start.x, moved.clientY - start.y];
    if (moved.shiftKey || image?.row.channels === 3) {
      parts.stage.scrollTo(start.left - dx, start.top - dy);
      return;
    }
    const unit = Math.max((start.high - start.low) / 300, (range.high - range.low) / 4000);
    const centre = (start.low + start.high) / 2 + dy * unit;
    const width = Math.max(range.least, start.high - start.low + 2 * dx * unit);
    change({ low: centre - width / 2, high: centre + width / 2 });
  };
  const end = () => parts.stage.removeEventListener("pointermove", move);
  parts.stage.addEventListener("pointermove", move);
  parts.stage.addEventListener("pointerup", end, { once: true });
  parts.stage.addEventListener("pointercancel", end, { once: true });
}

/** The value under the pointer, in its unit. */
function readOut(event) {
  if (!image) return;
  const { row: of } = image;
  const box = parts.canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * of.width);
  const row = Math.floor(((event.clientY - box.top) / box.height) * of.height);
  if (column < 0 || row < 0 || column >= of.width || row >= of.height) {
    panel.value("");
    return;
  }
  const place = row * of.width + column;
  const stored = of.channels === 3 ? [...image.stored.slice(3 * place, 3 * place + 3)] : [image.stored[place]];
  const value = of.channels === 3 ? `RGB ${stored.join(" ")}` : `${number(of.store_slope * stored[0] + of.store_intercept)} ${of.intensity_unit}`;
  panel.value(`row ${row}, column ${column}: ${value}`);
}

// ---- the dialog

function build() {
  const button = (text, name, action, attributes = {}) => el("button", { type: "button", "aria-label": name, title: name, onclick: action, ...attributes }, text);
  parts = {
    title: el("h2", {}), key: el("code", { class: "key" }), place: el("p", { class: "place", "aria-live": "polite" }),
    canvas: el("canvas", { role: "img", width: 1, height: 1 }), failed: el("p", { class: "message", role: "alert", hidden: true }),
    zoom: el("span", { class: "zoom" }, "fit"),
    slider: el("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Slice in the series", oninput: (event) => goTo(Number(event.target.value)) }),
  };
  parts.stage = el("div", { class: "stage", tabindex: "0", role: "group", "aria-label": "Slice. Arrow keys go through the series." }, parts.canvas, parts.failed);
  parts.stage.addEventListener("wheel", wheel, { passive: false });
  parts.stage.addEventListener("pointerdown", drag);
  parts.stage.addEventListener("pointermove", readOut);
  parts.stage.addEventListener("pointerleave", () => panel.value(""));
  panel = drawPanel(info, { change, reset: () => change({ ...slice.shown, inverted: false }), only: onlyThis });
  const dialog = byId("viewer");
  dialog.addEventListener("keydown", keys);
  dialog.addEventListener("close", () => {
    turn += 1;
    slice = null;
    image = null;
    series = [];
    asked.closed();
  });
  dialog.append(
    el("header", { class: "head" }, parts.title, parts.key, copyButton("Copy key", () => slice.key), el("span", { class: "grow" }),
      button("‹ previous", "Previous sample of this page (P)", () => asked.step(slice.key, -1)), button("next ›", "Next sample of this page (N)", () => asked.step(slice.key, 1)),
      button("✕", "Close (Esc)", () => dialog.close(), { class: "close" })),
    el("div", { class: "look" },
      el("div", { class: "picture" }, parts.stage,
        el("div", { class: "row along" }, button("▲", "Slice before (arrow up)", () => step(-1)), parts.slider, button("▼", "Slice after (arrow down)", () => step(1)),
          el("span", { class: "row zooms" }, button("−", "Smaller (-)", () => zoomBy(-1)), parts.zoom, button("+", "Larger (+)", () => zoomBy(1)), button("fit", "As large as fits (0)", () => setZoom(null)), button("1:1", "One stored pixel a screen pixel", () => setZoom(1)))),
        parts.place),
      panel.node));
  new ResizeObserver(fit).observe(parts.stage);
}

function onlyThis(column, value) {
  closeViewer();
  setOnly(column, value);
}

