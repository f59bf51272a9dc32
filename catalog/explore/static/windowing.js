// Stored values → shown grey. Pure functions over arrays; the browser does for every change what the server does once.

/** Stored values as an array of their type: 16-bit little-endian, or 8-bit. */
export function storedArray(buffer, bits) {
  if (bits <= 8) return new Uint8Array(buffer);
  const little = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
  if (little) return new Uint16Array(buffer);
  const view = new DataView(buffer);
  return Uint16Array.from({ length: buffer.byteLength / 2 }, (_, place) => view.getUint16(2 * place, true));
}

/** Lowest and highest stored value. */
export function extent(stored) {
  let low = Infinity;
  let high = -Infinity;
  for (let place = 0; place < stored.length; place += 1) {
    if (stored[place] < low) low = stored[place];
    if (stored[place] > high) high = stored[place];
  }
  return { low, high };
}

/** The grey of every stored value up to `highest`, for the window [low, high] in the unit of slope × stored + intercept. */
export function greys(highest, { slope, intercept, low, high, inverted }) {
  const table = new Uint8ClampedArray(highest + 1);
  const span = high > low ? high - low : 1;
  for (let value = 0; value <= highest; value += 1) {
    const share = Math.min(1, Math.max(0, (slope * value + intercept - low) / span));
    table[value] = Math.round(255 * (inverted ? 1 - share : share));
  }
  return table;
}

/** Write a grey image through a table into the bytes of an ImageData. */
export function paintGrey(stored, table, data) {
  const words = new Uint32Array(data.buffer);
  const colours = new Uint32Array(table.length);
  const bytes = new Uint8Array(colours.buffer);
  for (let value = 0; value < table.length; value += 1) {
    bytes[4 * value] = bytes[4 * value + 1] = bytes[4 * value + 2] = table[value];
    bytes[4 * value + 3] = 255;
  }
  for (let place = 0; place < stored.length; place += 1) words[place] = colours[stored[place]];
}

/** Write an RGB image into the bytes of an ImageData. */
export function paintColour(stored, data, inverted) {
  for (let from = 0, to = 0; from < stored.length; from += 3, to += 4) {
    for (let channel = 0; channel < 3; channel += 1) {
      data[to + channel] = inverted ? 255 - stored[from + channel] : stored[from + channel];
    }
    data[to + 3] = 255;
  }
}

/** How many stored values fall into each of `bars` equal parts of [low, high], both in the unit. */
export function histogram(stored, { slope, intercept }, low, high, bars) {
  const counts = new Array(bars).fill(0);
  const scale = bars / (high - low || 1);
  for (let place = 0; place < stored.length; place += 1) {
    const bar = Math.floor((slope * stored[place] + intercept - low) * scale);
    counts[Math.min(bars - 1, Math.max(0, bar))] += 1;
  }
  return counts;
}
