// The other side of packing.py: base64 of gzip of 16-bit differences → rows of numbers.
"use strict";

const STEPS = 65534, ABSENT = 65535;

async function unpack(text) {
  const chars = atob(text), bytes = new Uint8Array(chars.length);
  for (let i = 0; i < chars.length; i++) bytes[i] = chars.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint16Array(await new Response(stream).arrayBuffer());
}

// Rows of numbers, NaN where there is none. Decoded when a row is asked for, and kept.
function matrix(packed, where) {
  const rows = [];
  return row => rows[row] ??= decode(packed, where, row);
}

function decode(packed, where, row) {
  const {at, length, low, extent} = where, start = at + row * length;
  const numbers = new Float64Array(length);
  for (let i = 0, step = 0; i < length; i++) {
    step = (step + packed[start + i]) & 0xffff;
    numbers[i] = step === ABSENT ? NaN : Math.sinh(low[row] + step / STEPS * extent[row]);
  }
  return numbers;
}
