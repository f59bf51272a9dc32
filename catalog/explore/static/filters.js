// The filters: values with their counts, ranges with their spread, a SQL condition.

import { ask, isOld } from "./api.js";
import { byId, el, number, refill, svg, words } from "./dom.js";
import { current, filtered, go, selection, setParameter, toggleValue, without } from "./state.js";

const NOT_STATED = "";
const added = new Set();
const closed = new Set();
let columns = [];
let facets = [];

export const label = (value) => (value === NOT_STATED ? "not stated" : value);

export function startFilters(offered) {
  columns = offered;
}

const kindOf = (name) => columns.find((column) => column.name === name);

function shown() {
  const chosen = filtered();
  return columns.filter((column) => column.offered || added.has(column.name) || chosen.has(column.name));
}

/** Ask for the values under the filters in force, and show them. */
export async function refreshFilters() {
  const parameters = selection();
  for (const column of shown()) parameters.append("column", column.name);
  try {
    facets = await ask("api/facets", parameters, "facets");
  } catch (error) {
    if (isOld(error)) return;
    facets = facets.map((facet) => ({ ...facet, stale: true }));
  }
  draw();
}

function draw() {
  refill(byId("filters"), conditionBox(), facets.filter(hasSomething).map(facetBox), addBox());
}

/** A column that says nothing in this data set is not worth a place, unless it was asked for. */
function hasSomething(facet) {
  if (added.has(facet.column) || filtered().has(facet.column)) return true;
  return facet.kind === "number" ? facet.low !== null : facet.values.some(([value]) => value !== NOT_STATED);
}

function conditionBox() {
  const input = el("input", {
    type: "text", id: "where", value: current().get("where") ?? "", placeholder: "slice_thickness <= 2", spellcheck: "false",
    autocomplete: "off", "data-focus": "where", "aria-describedby": "where-help",
  });
  return el("form", { class: "facet condition", onsubmit: apply },
    el("label", { for: "where", class: "title" }, "SQL condition"),
    el("div", { class: "row" }, input, el("button", { type: "submit", class: "small", "data-focus": "where-apply" }, "Apply")),
    el("p", { class: "hint", id: "where-help" }, "As in lumid query; text in single quotes."));
  function apply(event) {
    event.preventDefault();
    setParameter("where", input.value.trim());
  }
}

function facetBox(facet) {
  const about = kindOf(facet.column);
  const unit = about.unit && !facet.column.endsWith(about.unit) ? ` (${about.unit})` : "";
  const box = el("details", { class: "facet", open: !closed.has(facet.column) },
    el("summary", { title: about.meaning, "data-focus": `facet ${facet.column}` }, words(facet.column) + unit),
    facet.kind === "number" ? rangeOf(facet) : valuesOf(facet));
  box.addEventListener("toggle", () => (box.open ? closed.delete(facet.column) : closed.add(facet.column)));
  return box;
}

function valuesOf(facet) {
  const chosen = new Set(current().getAll(`is.${facet.column}`));
  const list = el("ul", { class: "values" }, rows(facet.values));
  return [list, facet.more && search()];

  function rows(values) {
    const largest = Math.max(1, ...values.map(([, count]) => count));
    return values.map(([value, count]) => {
      const tick = el("input", {
        type: "checkbox", checked: chosen.has(value), "data-focus": `is ${facet.column} ${value}`,
        onchange: (event) => toggleValue(facet.column, value, event.target.checked),
      });
      const bar = el("span", { class: "share", "aria-hidden": "true" });
      bar.style.setProperty("--share", count / largest);
      return el("li", {}, el("label", { class: value === NOT_STATED ? "unstated" : null }, tick,
        el("bdi", { class: "value", title: label(value) }, label(value)), el("span", { class: "count" }, number(count)), bar));
    });
  }

  function search() {
    const input = el("input", {
      type: "text", class: "find", placeholder: "find a value", "aria-label": `find a value of ${words(facet.column)}`,
      autocomplete: "off", "data-focus": `find ${facet.column}`, oninput: find,
    });
    return input;
    async function find() {
      const parameters = selection();
      parameters.set("column", facet.column);
      parameters.set("part", input.value);
      try {
        const found = input.value ? (await ask("api/values", parameters, `values ${facet.column}`)).values : facet.values;
        list.replaceChildren(...(found.length ? rows(found) : [el("li", { class: "hint" }, "no such value")]));
      } catch (error) {
        if (!isOld(error)) list.replaceChildren(el("li", { class: "hint" }, error.message));
      }
    }
  }
}

function rangeOf(facet) {
  const name = words(facet.column);
  const ends = { from: current().get(`from.${facet.column}`) ?? "", to: current().get(`to.${facet.column}`) ?? "" };
  if (facet.low === null) return el("p", { class: "hint" }, "not stated for any sample");
  const input = (end, hint) => el("input", {
    type: "number", step: "any", value: ends[end], placeholder: number(hint), "aria-label": `${name} ${end}`,
    "data-focus": `${end} ${facet.column}`, onchange: (event) => setParameter(`${end}.${facet.column}`, event.target.value),
  });
  return [facet.stated ? spread(facet, ends) : el("p", { class: "hint" }, "not stated for any of these"), el("div", { class: "row ends" }, input("from", facet.low), el("span", {}, "to"), input("to", facet.high))];
}

function spread(facet, ends) {
  const largest = Math.max(1, ...facet.bars);
  const width = (facet.high - facet.low) / facet.bars.length;
  const inside = (place) => {
    const low = facet.low + place * width;
    return (ends.from === "" || low + width >= Number(ends.from)) && (ends.to === "" || low <= Number(ends.to));
  };
  const bars = facet.bars.map((count, place) => count > 0 && svg("rect", {
    x: 10 * place + 0.6, width: 8.8, y: 100 - Math.max(3, 100 * (count / largest)), height: Math.max(3, 100 * (count / largest)),
    class: inside(place) ? null : "outside",
  }, svg("title", {}, `${number(facet.low + place * width)} to ${number(facet.low + (place + 1) * width)}: ${number(count)}`)));
  return svg("svg", {
    viewBox: `0 0 ${10 * facet.bars.length} 100`, preserveAspectRatio: "none", role: "img", class: "spread",
    "aria-label": `${words(facet.column)}: ${number(facet.low)} to ${number(facet.high)}, stated for ${number(facet.stated)}`,
  }, bars);
}

function addBox() {
  const others = columns.filter((column) => !shown().includes(column));
  return el("div", { class: "facet" },
    el("label", { for: "add-filter", class: "title" }, "Another column"),
    el("select", { id: "add-filter", "data-focus": "add-filter", onchange: add },
      el("option", { value: "" }, "choose…"), others.map((column) => el("option", { value: column.name, title: column.meaning }, words(column.name)))),
    filtered().size + (current().has("where") ? 1 : 0) > 0
      && el("button", { type: "button", class: "small wide", "data-focus": "clear", onclick: clearAll }, "Clear all filters"));
  function add(event) {
    added.add(event.target.value);
    refreshFilters();
  }
}

export function clearAll() {
  go(without("where", ...[...current().keys()].filter((name) => /^(is|from|to)\./.test(name))));
}

/** The filters in force, as buttons that take them away. */
export function chips() {
  const made = [];
  const chip = (text, remove) => made.push(el("li", {}, el("button", {
    type: "button", class: "chip", "data-focus": `chip ${text}`, "aria-label": `Remove the filter ${text}`, onclick: remove,
  }, el("bdi", {}, text), el("span", { "aria-hidden": "true" }, "×"))));
  for (const [name, value] of current()) {
    const [sort, column] = [name.slice(0, name.indexOf(".")), name.slice(name.indexOf(".") + 1)];
    if (sort === "is") chip(`${words(column)}: ${label(value)}`, () => toggleValue(column, value, false));
    else if (sort === "from") chip(`${words(column)} ≥ ${value}`, () => setParameter(name, ""));
    else if (sort === "to") chip(`${words(column)} ≤ ${value}`, () => setParameter(name, ""));
    else if (name === "where") chip(value, () => setParameter("where", ""));
  }
  return made;
}
