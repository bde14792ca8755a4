// Label maps of one slice, Uint8Array row by row; each function gives a new one and changes none.

function decodeRuns(runs, size) {
  const out = new Uint8Array(size);
  let at = 0;
  for (let i = 0; i < runs.length; i += 2) { out.fill(runs[i], at, at + runs[i + 1]); at += runs[i + 1]; }
  return out;
}

function encodeRuns(labels) {
  const runs = [];
  for (let start = 0, i = 1; i <= labels.length; i++) {
    if (i === labels.length || labels[i] !== labels[start]) { runs.push(labels[start], i - start); start = i; }
  }
  return runs;
}

// [y0, x0, y1, x1] of a label, the last two excluded; null where there is none.
function extentOf(labels, width, label) {
  let y0 = Infinity, x0 = Infinity, y1 = -1, x1 = -1;
  for (let i = 0; i < labels.length; i++) {
    if (labels[i] !== label) continue;
    const y = Math.floor(i / width), x = i - y * width;
    y0 = Math.min(y0, y); x0 = Math.min(x0, x); x1 = Math.max(x1, x); y1 = y;
  }
  return y1 < 0 ? null : [y0, x0, y1 + 1, x1 + 1];
}

// Pixels of a label, and free ones beside it where `inside`.
function dilated(labels, width, label, inside) {
  const out = labels.slice();
  for (let i = 0; i < labels.length; i++) {
    if (labels[i] !== label) continue;
    const x = i % width;
    const beside = [i - width, i + width, x > 0 ? i - 1 : -1, x < width - 1 ? i + 1 : -1];
    for (const j of beside) if (labels[j] === 0 && inside(j)) out[j] = label;
  }
  return out;
}

// Mirrored in the vertical line through `middle`, in pixels from the left edge.
function mirrored(labels, width, middle) {
  const out = new Uint8Array(labels.length);
  for (let i = 0; i < labels.length; i++) {
    const x = i % width, other = Math.round(2 * middle) - 1 - x;
    if (labels[i] && other >= 0 && other < width) out[i - x + other] = labels[i];
  }
  return out;
}

// The connected area of the pixel `start`, which must not touch the edge of the slice: what a closed line encloses.
// Null where the line is open.
function filled(labels, width, start, label) {
  const out = labels.slice(), old = labels[start], waiting = [start];
  if (old === label) return out;
  out[start] = label;
  while (waiting.length) {
    const i = waiting.pop(), x = i % width;
    if (x === 0 || x === width - 1 || i < width || i >= labels.length - width) return null;
    for (const j of [i - 1, i + 1, i - width, i + width]) if (out[j] === old) { out[j] = label; waiting.push(j); }
  }
  return out;
}

// Whether a pixel lies in a polygon of pixels [x, y], by the even-odd rule, or on its line: then a rectangle holds
// all four of its corners.
function inPolygon(points, x, y) {
  let inside = false;
  for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
    const [xi, yi] = points[i], [xj, yj] = points[j];
    const isBetween = x >= Math.min(xi, xj) && x <= Math.max(xi, xj) && y >= Math.min(yi, yj) && y <= Math.max(yi, yj);
    if (isBetween && (xj - xi) * (y - yi) === (x - xi) * (yj - yi)) return true;
    if ((yi > y) !== (yj > y) && x < (xj - xi) * (y - yi) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

// Squared Euclidean distance of each pixel to the nearest one for which `is(i)` (Felzenszwalb & Huttenlocher 2012).
function squaredDistances(is, height, width) {
  const far = 1e12, out = new Float64Array(height * width);
  for (let i = 0; i < out.length; i++) out[i] = is(i) ? 0 : far;
  const pass = (start, stride, count) => {
    const f = new Float64Array(count), at = new Int32Array(count), from = new Float64Array(count + 1);
    for (let q = 0; q < count; q++) f[q] = out[start + q * stride];
    let k = 0;
    from[0] = -Infinity; from[1] = Infinity;
    for (let q = 1; q < count; q++) {
      let s = ((f[q] + q * q) - (f[at[k]] + at[k] ** 2)) / (2 * q - 2 * at[k]);
      while (s <= from[k]) { k--; s = ((f[q] + q * q) - (f[at[k]] + at[k] ** 2)) / (2 * q - 2 * at[k]); }
      k++; at[k] = q; from[k] = s; from[k + 1] = Infinity;
    }
    k = 0;
    for (let q = 0; q < count; q++) {
      while (from[k + 1] < q) k++;
      out[start + q * stride] = (q - at[k]) ** 2 + f[at[k]];
    }
  };
  for (let x = 0; x < width; x++) pass(x, width, height);
  for (let y = 0; y < height; y++) pass(y * width, 1, width);
  return out;
}

// Between two slices, `share` of the way from the first to the second: signed distances to each label's border are
// averaged (Raya & Udupa 1990).
function between(first, second, height, width, share) {
  const out = new Uint8Array(first.length), least = new Float64Array(first.length);
  for (const label of new Set([...first, ...second])) {
    if (!label) continue;
    const signed = [first, second].map((labels) => {
      const outer = squaredDistances((i) => labels[i] === label, height, width);
      const inner = squaredDistances((i) => labels[i] !== label, height, width);
      return outer.map((value, i) => Math.sqrt(value) - Math.sqrt(inner[i]));
    });
    for (let i = 0; i < out.length; i++) {
      const distance = (1 - share) * signed[0][i] + share * signed[1][i];
      if (distance < least[i]) { least[i] = distance; out[i] = label; }
    }
  }
  return out;
}
