// Questions to the server. One of a kind at a time: a newer one takes the place of an older that has not been answered.

const waiting = new Map();

/** An answer of JSON; `kind`: what it takes the place of. Raises Error with the server's line. */
export async function ask(path, parameters, kind) {
  const query = parameters?.toString();
  const response = await get(query ? `${path}?${query}` : path, kind);
  return response.json();
}

/** The bytes of an image as they are stored. */
export async function pixels(key) {
  return (await get(`pixels/${key}`)).arrayBuffer();
}

async function get(address, kind) {
  waiting.get(kind)?.abort();
  const controller = new AbortController();
  if (kind) waiting.set(kind, controller);
  let response;
  try {
    response = await fetch(address, { signal: controller.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("lumid explore does not answer any more: start it again");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error ?? `the server answered ${response.status}`);
  }
  return response;
}

export const isOld = (error) => error.name === "AbortError";
