// The page: filters at the side, thumbnails, and a slice when one is opened.

import { ask, isOld } from "./api.js";
import { byId, copyButton, el, number, refill, words } from "./dom.js";
import { chips, refreshFilters, startFilters } from "./filters.js";
import { current, forgetSecret, go, onChange, selection, setParameter } from "./state.js";
import { warm } from "./slices.js";
import { caption, closeViewer, openViewer, startViewer } from "./viewer.js";

let info;
let page = null;
let asked = null;

async function start() {
  forgetSecret();
  try {
    info = await ask("api/dataset");
  } catch (error) {
    say(error.message);
    return;
  }
  document.title = `${info.name} · lumid explore`;
  byId("name").textContent = info.name;
  byId("path").textContent = info.path;
  startFilters(info.columns);
  startViewer(info, { step: stepInView, closed: () => setOpen(null) });
  byId("show-filters").addEventListener("click", toggleFilters);
  byId("grid").addEventListener("keydown", moveInGrid);
  onChange(load);
  await load();
}

/** Show what the address says. */
async function load() {
  const key = current().get("key");
  const parameters = selection();
  parameters.set("page", current().get("page") ?? "1");
  if (parameters.toString() !== asked) {
    asked = parameters.toString();
    drawControls();
    refreshFilters();
    try {
      page = await ask("api/samples", parameters, "samples");
      say(null);
    } catch (error) {
      if (isOld(error)) return;
      page = null;
      asked = null;
      say(error.message);
    }
    drawPage();
  }
  if (key !== current().get("key")) return;
  if (key) await openViewer(key, page?.rows.find((row) => row.key === key)).catch((error) => say(error.message));
  else closeViewer();
}

function say(message) {
  byId("message").hidden = !message;
  byId("message").textContent = message ?? "";
}

// ---- above the thumbnails

function drawControls() {
  const parameters = current();
  const orders = ["key", "series", ...info.columns.filter((one) => one.kind !== "list" && !["key", "series"].includes(one.name)).map((one) => one.name)];
  const said = { key: "key (a fair shuffle)", series: "series, slice by slice" };
  const order = el("select", { id: "order", "data-focus": "order", onchange: (event) => setParameter("order", event.target.value === "key" ? "" : event.target.value) },
    orders.map((name) => el("option", { value: name, selected: name === (parameters.get("order") ?? "key") }, said[name] ?? words(name))));
  const descending = el("input", { type: "checkbox", "data-focus": "desc", checked: parameters.get("desc") === "1", onchange: (event) => setParameter("desc", event.target.checked ? "1" : "") });
  const one = el("input", { type: "checkbox", "data-focus": "one", checked: parameters.get("series") === "one", onchange: (event) => setParameter("series", event.target.checked ? "one" : "") });
  const windows = el("select", { id: "window", "data-focus": "window", onchange: (event) => showIn(event.target.value) },
    Object.entries(info.windows).map(([name, { low, high }]) => el("option", { value: name, selected: name === windowName() }, `${presetName(name)}, ${number(low)} to ${number(high)} HU`)));
  refill(byId("controls"),
    el("span", { class: "control" }, el("label", { for: "order" }, "Order"), order),
    el("label", { class: "control" }, descending, "descending"),
    el("label", { class: "control" }, one, "one slice a series"),
    el("span", { class: "control" }, el("label", { for: "window" }, "CT window"), windows));
}

export const presetName = (name) => (name === "soft" ? "soft tissue" : name);
const windowName = () => current().get("window") ?? info.default_window;

function showIn(name) {
  const parameters = current();
  if (name === info.default_window) parameters.delete("window");
  else parameters.set("window", name);
  go(parameters, { replace: true });
  drawControls();
  drawPage();
}

// ---- the thumbnails

function drawPage() {
  const rows = page?.rows ?? [];
  byId("count").textContent = page === null ? "" : page.total === 0 ? "no samples" : `${number(page.total)} ${current().get("series") === "one" ? "series" : page.total === 1 ? "sample" : "samples"}`;
  refill(byId("chips"), chips());
  drawQuery();
  refill(byId("grid"), rows.length ? rows.map(tile) : page && el("li", { class: "nothing" }, page.why.map((line) => el("p", {}, `Nothing found: ${line}.`))));
  drawPager();
}

function tile(row) {
  const parameters = current();
  parameters.set("key", row.key);
  const window = row.intensity_unit === "HU" && windowName() !== info.default_window ? `?window=${windowName()}` : "";
  const image = el("img", { src: `thumbnails/${row.key}${window}`, alt: caption(row), loading: "lazy", width: 192, height: 192, decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "broken" }, "cannot be read")));
  const open = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    warm(row);
    setOpen(row.key);
  };
  return el("li", {}, el("a", { href: `?${parameters}`, class: "tile", "data-focus": `tile ${row.key}`, onclick: open, onpointerdown: () => warm(row) },
    el("span", { class: "frame" }, image),
    el("span", { class: "caption" }, el("b", {}, row.modality), " ", el("bdi", {}, row.body_part ?? "–"),
      el("small", {}, row.slice_count > 1 && row.slice_index !== null ? `slice ${row.slice_index + 1} · ${row.slice_count} in series` : `${row.width} × ${row.height}`))));
}

/** Arrows go from thumbnail to thumbnail; Tab leaves them as it leaves links. */
function moveInGrid(event) {
  const tiles = [...byId("grid").querySelectorAll(".tile")];
  const at = tiles.indexOf(document.activeElement);
  if (at < 0) return;
  const top = tiles[at].getBoundingClientRect().top;
  const across = tiles.findIndex((one) => one.getBoundingClientRect().top > tiles[0].getBoundingClientRect().top + 1);
  const down = across < 0 ? tiles.length : across;
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + down, ArrowUp: at - down, Home: 0, End: tiles.length - 1 }[event.key];
  if (to === undefined || !tiles[to] || top === undefined) return;
  event.preventDefault();
  tiles[to].focus();
}

function drawPager() {
  const last = page ? Math.max(1, Math.ceil(page.total / page.size)) : 1;
  if (last === 1) {
    refill(byId("pager"));
    return;
  }
  const to = (number_) => {
    const parameters = current();
    parameters.delete("key");
    if (number_ === 1) parameters.delete("page");
    else parameters.set("page", number_);
    go(parameters);
    scrollTo({ top: 0 });
  };
  const button = (text, number_, name) => el("button", { type: "button", "data-focus": name, "aria-label": name, disabled: number_ < 1 || number_ > last || number_ === page.number, onclick: () => to(number_) }, text);
  const input = el("input", { type: "number", min: 1, max: last, value: page.number, "aria-label": "Page", "data-focus": "page", onchange: (event) => to(Math.min(last, Math.max(1, Math.round(Number(event.target.value)) || 1))) });
  refill(byId("pager"), button("«", 1, "First page"), button("‹", page.number - 1, "Previous page"),
    el("span", {}, "page ", input, ` of ${number(last)}`), button("›", page.number + 1, "Next page"), button("»", last, "Last page"));
}

// ---- the query

function drawQuery() {
  const box = byId("query");
  box.hidden = page === null;
  if (page === null) return;
  const part = (title, text) => el("section", {}, el("div", { class: "row" }, el("h2", {}, title), copyButton("Copy", () => text)), el("pre", { tabindex: "0", "aria-label": title }, text));
  const saving = el("a", { class: "button", href: `subset.parquet?${selection()}`, download: "subset.parquet", "data-focus": "save" }, `Save these ${number(page.total)} as a subset`);
  refill(box, el("summary", { "data-focus": "query" }, "The query, and saving it as a subset"),
    part("Command line", page.command), part("SQL", page.sql), part("Python", page.python), part("As a subset", page.subset),
    page.total > 0 && el("p", {}, saving, el("span", { class: "hint" }, " a Parquet file of keys and places")));
}

// ---- opening

function setOpen(key) {
  const parameters = current();
  if (key) parameters.set("key", key);
  else parameters.delete("key");
  go(parameters, { replace: !key || current().has("key") });
}

/** From an opened sample to the one before or after it on this page. */
function stepInView(key, by) {
  const rows = page?.rows ?? [];
  const at = rows.findIndex((row) => row.key === key);
  const next = rows[at + by];
  if (at >= 0 && next) setOpen(next.key);
}

function toggleFilters() {
  const open = document.body.classList.toggle("filters-open");
  byId("show-filters").setAttribute("aria-expanded", String(open));
}

start();
