// The stored values of slices, kept for a while: going back and forth in a series asks the server once.

import { pixels } from "./api.js";
import { extent, storedArray } from "./windowing.js";

const KEPT_BYTES = 192e6;
const kept = new Map();
let size = 0;

/** A row's stored values, with the lowest and highest of them. */
export function load(row) {
  const known = kept.get(row.key);
  if (known) {
    kept.delete(row.key);
    kept.set(row.key, known);
    return known;
  }
  const promise = pixels(row.key).then((buffer) => {
    const stored = storedArray(buffer, row.bits);
    if (stored.length !== row.width * row.height * row.channels) throw new Error("this image is not of the size that the catalog says");
    return { stored, ...extent(stored) };
  });
  kept.set(row.key, promise);
  size += bytes(row);
  promise.catch(() => forget(row));
  rowOf.set(row.key, row);
  while (size > KEPT_BYTES && kept.size > 8) forget(rowOf.get(kept.keys().next().value));
  return promise;
}

/** Ask for it before it is wanted. */
export function warm(row) {
  load(row).catch(() => {});
}

const rowOf = new Map();
const bytes = (row) => (row.width * row.height * row.channels * row.bits) / 8;

function forget(row) {
  if (!kept.delete(row.key)) return;
  rowOf.delete(row.key);
  size -= bytes(row);
}
