// Volumes in the browser: read once, so that turning a slice asks the server for nothing.
// An array is {codes, low, step}: value = low + step * code.
const arrays = new Map();  // By address.
let reading = new AbortController();

// Those of images that are not shown any more, also while they are fetched.
function forgetArrays() {
  reading.abort();
  reading = new AbortController();
  arrays.clear();
}

function readArray(about, kind = Uint16Array) {
  if (!arrays.has(about.url)) {
    arrays.set(about.url, fetchArray(about, kind).catch((error) => { arrays.delete(about.url); throw error; }));
  }
  return arrays.get(about.url);
}

async function fetchArray(about, kind) {
  const answer = await fetch(about.url, {signal: reading.signal});
  if (!answer.ok) throw new Error("the server answered " + answer.status);
  const plain = answer.body.pipeThrough(new DecompressionStream("gzip"));
  const codes = new kind(await new Response(plain).arrayBuffer());
  return {codes, low: about.low ?? 0, step: about.step ?? 1};
}

// Gray of every code; `low` is black and `high` white.
function grays(array, low, high) {
  if (array.table && array.tableLow === low && array.tableHigh === high) return array.table;
  const table = new Uint8ClampedArray(65536), slope = 255 / Math.max(high - low, 1e-12);
  for (let code = 0; code < table.length; code++) table[code] = (array.low + array.step * code - low) * slope;
  return Object.assign(array, {table, tableLow: low, tableHigh: high}).table;
}

function blend(stops, at) {
  const place = Math.min(Math.max(at, 0), 1) * (stops.length - 1), left = Math.floor(place);
  const right = Math.min(left + 1, stops.length - 1), share = place - left;
  return stops[left].map((value, i) => value + share * (stops[right][i] - value));
}

// Matplotlib's "inferno" at nine points, from 0 to the top.
const HEAT = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];
// Lower is blue, the same is black, higher is orange.
const SIGNED = [[86, 180, 255], [0, 80, 170], [0, 0, 0], [170, 70, 0], [255, 176, 60]];

// What a number of the file's units looks like in a few characters.
function short(value) {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(3)));
}
