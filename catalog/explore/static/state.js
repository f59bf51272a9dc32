// What is looked at is in the address, so that it can be gone back to, kept and passed on: its parameters are the state.

const listeners = new Set();

/** The parameters in force. */
export const current = () => new URLSearchParams(location.search);

export const onChange = (listener) => listeners.add(listener);

/** Make these the parameters in force. */
export function go(parameters, { replace = false } = {}) {
  const query = parameters.toString();
  if (query === current().toString()) return;
  history[replace ? "replaceState" : "pushState"](null, "", query ? `?${query}` : location.pathname);
  for (const listener of listeners) listener();
}

addEventListener("popstate", () => listeners.forEach((listener) => listener()));

/** Take the link's secret out of the address: the browser has it as a cookie now. */
export function forgetSecret() {
  const parameters = current();
  if (!parameters.has("token")) return;
  parameters.delete("token");
  const query = parameters.toString();
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
}

/** The parameters without some, and on the first page. */
export function without(...names) {
  const parameters = current();
  for (const name of ["page", "key", ...names]) parameters.delete(name);
  return parameters;
}

/** The parameters that select samples: no page, no open slice, nothing of how it is shown. */
export function selection(parameters = current()) {
  const kept = new URLSearchParams();
  for (const [name, value] of parameters) {
    if (/^(is|from|to)\./.test(name) || ["where", "series", "order", "desc"].includes(name)) kept.append(name, value);
  }
  return kept;
}

export function toggleValue(column, value, on) {
  const name = `is.${column}`;
  const kept = current().getAll(name).filter((one) => one !== value);
  const parameters = without(name);
  for (const one of on ? [...kept, value] : kept) parameters.append(name, one);
  go(parameters);
}

export function setOnly(column, value) {
  const parameters = without(`is.${column}`, `from.${column}`, `to.${column}`);
  parameters.append(`is.${column}`, value);
  go(parameters);
}

export function setParameter(name, value, options) {
  const parameters = without(name);
  if (value !== "") parameters.set(name, value);
  go(parameters, options);
}

/** The columns that are filtered now. */
export const filtered = () =>
  new Set([...current().keys()].filter((name) => /^(is|from|to)\./.test(name)).map((name) => name.slice(name.indexOf(".") + 1)));

/** Write a parameter into the address without anything else coming of it. */
export function note(name, value) {
  const parameters = current();
  parameters.set(name, value);
  history.replaceState(null, "", `?${parameters}`);
}
