// Shows a case and its results, and paints a label map on it. `props.value` comes from `views.case_view`, is
// replaced by what is painted, {key, serial, edits, box}, and `props.result` comes from `views.result_view`.
const find = (name) => element.querySelector("." + name);
const canvas = find("view"), context = canvas.getContext("2d");
const ERASER = 0;
const HISTORY = 100;
const COLORS = new Map(props.tissues.map((tissue) => [tissue.label, tissue.color]));
const LABELS = [...props.tissues.map((tissue) => tissue.label), ERASER];

let scene = null;  // What the server said of the case.
let depth = 0, height = 0, width = 0, scale = 1;
let volumes = new Map(), brain = null;  // Sequence -> array; both null or missing until they are here.
let windows = new Map();  // Sequence -> [black, white] in the file's units.
let painted = new Map();  // Slice -> labels; slices without any are not in it.
let edited = new Set(), serial = 0;
let box = new Set();
let sequence = "", z = 0, layer = "before", held = false, hidden = false;
let result = null;  // As the server said, with `arrays`.
let tool = "brush", chosen = LABELS[0];
let done = [], undone = [];  // Of {slice -> labels before}.
let stroke = null;  // The one under way.
let corners = [];  // Of the polygon under way.
let view = {x: 0, y: 0, zoom: 1};  // The left upper corner in pixels of the slice.
const sliceCanvas = document.createElement("canvas");

// --- What the server sends.

function take() {
  const value = props.value;
  element.firstElementChild.hidden = !scene && !(value && value.shape);
  if (!value || !value.shape) return;
  const isNew = !scene || scene.key !== value.key;
  scene = value;
  [depth, height, width] = scene.shape;
  painted = new Map(Object.entries(scene.painted).map(([at, runs]) => [Number(at), decodeRuns(runs, height * width)]));
  box = new Set(scene.box);
  edited = new Set(); serial = scene.serial; done = []; undone = []; stroke = null; corners = [];
  z = scene.first;
  if (isNew) {
    volumes = new Map(); brain = null;
    windows = new Map(scene.sequences.map((one) => [one.name, [...one.window]]));
    sequence = scene.sequences[0].name; layer = "before"; result = null;
    view = {x: 0, y: 0, zoom: 1};
    // Whole screen pixels for each pixel of the slice, so that none is drawn wider than its neighbor.
    scale = Math.max(1, Math.ceil(720 / Math.max(height, width)));
    canvas.width = width * scale; canvas.height = height * scale;
    canvas.style.aspectRatio = width * scene.spacing[2] + " / " + height * scene.spacing[1];
    sliceCanvas.width = width; sliceCanvas.height = height;
    for (const side of element.querySelectorAll(".side")) side.hidden = !scene.sides;
    for (const part of element.querySelectorAll(".volume-only")) part.hidden = depth < 2;
    for (const name of ["slice", "slice-number"]) find(name).max = depth - 1;
    buildSequences(); buildSmall(); load();
  }
  for (const tissue of props.tissues) find("box-" + tissue.name).checked = box.has(tissue.name);
  buildLayers(); say(""); draw();
  canvas.scrollIntoView({block: "center"});
}

// The shown sequence first, so that painting can begin.
async function load() {
  const mine = scene;
  try {
    const mask = await readArray({url: mine.brain}, Uint8Array);
    if (scene.key !== mine.key) return;
    brain = mask.codes;
    for (const about of [...mine.sequences].sort((a, b) => (b.name === sequence) - (a.name === sequence))) {
      const array = await readArray(about);
      if (scene.key !== mine.key) return;
      volumes.set(about.name, array);
      draw();
    }
  } catch (error) {
    find("loading").textContent = "The images could not be loaded (" + error.message + "). Reload the page and try again.";
  }
}

async function takeResult() {
  const next = props.result;
  if (!next || !scene) { result = null; layer = "before"; buildLayers(); draw(); return; }
  if (next.key !== scene.key) return;
  say("Loading the result ...");
  try {
    const all = [];
    for (const [name, samples] of Object.entries(next.values)) {
      samples.forEach((about, i) => all.push(readArray(about).then((array) => [name + " " + i, array])));
      if (next.std) all.push(readArray(next.std[name]).then((array) => [name + " std", array]));
    }
    next.arrays = new Map(await Promise.all(all));
    if (next.labels) next.said = next.labels.map((sample) => sample.map((runs) => decodeRuns(runs, height * width)));
    next.masks = next.roi.map((runs) => decodeRuns(runs, height * width));
  } catch (error) {
    say("The result could not be loaded (" + error.message + "). It is among the downloads.");
    return;
  }
  if (next.key !== scene.key) return;
  result = next;
  if (!result.slices.includes(z)) z = result.first;
  layer = 0;
  buildLayers(); draw();
  say("This is the result" + (result.said ? ", outlined what the model says it painted" : "") + ". Hold the button below the picture, or the space bar on it, to see what was there before.");
  canvas.scrollIntoView({block: "center"});
}

function send() {
  const edits = {};
  for (const at of edited) edits[at] = painted.has(at) ? encodeRuns(painted.get(at)) : [0, height * width];
  serial += 1;
  props.value = {key: scene.key, serial, edits, box: [...box]};
  trigger("input");
}

function isReady() { return brain !== null && volumes.has(sequence); }

function labelsOf(at) { return painted.get(at) ?? new Uint8Array(height * width); }

function put(at, labels) {
  if (labels.some((label) => label)) painted.set(at, labels); else painted.delete(at);
  edited.add(at);
}

function isBrain(i, at = z) { return !find("inside").checked || !!brain[at * height * width + i]; }

function say(text) { if (find("say").textContent !== text) find("say").textContent = text; }

// --- Pictures.

function windowOf(name) { return windows.get(name); }

// Where a slice lies in the result's arrays; -1 where it was not repainted, or this sequence was not.
function resultAt(name, at) { return result && result.values[name] ? result.slices.indexOf(at) : -1; }

function shownLayer() { return held ? "before" : layer; }

// RGB of a voxel in the shown layer.
function colorist(name, at) {
  const before = volumes.get(name), [low, high] = windowOf(name), gray = grays(before, low, high);
  const size = height * width, now = shownLayer(), index = now === "before" ? -1 : resultAt(name, at);
  const base = at * size;
  if (index < 0) return (i) => { const g = gray[before.codes[base + i]]; return [g, g, g]; };
  const start = index * size, mask = result.masks[index];
  if (typeof now === "number") {
    const sample = result.arrays.get(name + " " + now), after = grays(sample, low, high);
    return (i) => { const g = mask[i] ? after[sample.codes[start + i]] : gray[before.codes[base + i]]; return [g, g, g]; };
  }
  const {top, value, stops} = measured(name, now);
  const signed = now === "difference";
  return (i) => {
    if (!mask[i]) { const g = gray[before.codes[base + i]] / 2; return [g, g, g]; }
    const share = value(index, i, base) / (top || 1);
    return blend(stops, signed ? (share + 1) / 2 : share);
  };
}

// Difference or standard deviation: its values, the largest of them in all slices, and its colors.
function measured(name, kind) {
  const size = height * width;
  let value, stops = HEAT;
  if (kind === "std") {
    const std = result.arrays.get(name + " std");
    value = (index, i) => std.low + std.step * std.codes[index * size + i];
  } else {
    const sample = result.arrays.get(name + " " + result.sample), before = volumes.get(name);
    stops = SIGNED;
    value = (index, i, base) => sample.low + sample.step * sample.codes[index * size + i] - before.low - before.step * before.codes[base + i];
  }
  const known = name + " " + kind + " " + result.sample;
  result.tops ??= new Map();
  if (!result.tops.has(known)) {
    let top = 0;
    result.slices.forEach((at, index) => {
      for (let i = 0; i < size; i++) if (result.masks[index][i]) top = Math.max(top, Math.abs(value(index, i, at * size)));
    });
    result.tops.set(known, top);
  }
  return {top: result.tops.get(known), value, stops};
}

function pictureOf(name, at, withOutline) {
  const pixels = new ImageData(width, height), color = colorist(name, at), labels = labelsOf(at);
  const fills = shownLayer() === "before" && !hidden && !held;
  const opacity = Number(find("opacity").value) / 100;
  for (let i = 0; i < labels.length; i++) {
    let rgb = color(i);
    if (labels[i] && (fills || (withOutline && !hidden))) {
      const mine = COLORS.get(labels[i]), x = i % width;
      const isEdge = withOutline && (labels[i - 1] !== labels[i] || labels[i + 1] !== labels[i] || labels[i - width] !== labels[i] || labels[i + width] !== labels[i] || x === 0 || x === width - 1);
      const share = isEdge ? 1 : fills ? opacity : 0;
      rgb = rgb.map((value, c) => value + share * (mine[c] - value));
    }
    pixels.data[4 * i] = rgb[0]; pixels.data[4 * i + 1] = rgb[1]; pixels.data[4 * i + 2] = rgb[2]; pixels.data[4 * i + 3] = 255;
  }
  return pixels;
}

// Screen pixels of a pixel's left upper corner.
function toScreen(x, y) { return [(x - view.x) * scale * view.zoom, (y - view.y) * scale * view.zoom]; }

function outline(labels) {
  context.lineWidth = 2;
  for (const [label, color] of COLORS) {
    context.strokeStyle = "rgb(" + color.join(",") + ")";
    context.beginPath();
    for (let i = 0; i < labels.length; i++) {
      if (labels[i] !== label) continue;
      const x = i % width, y = (i - x) / width;
      const edge = (isOther, x0, y0, x1, y1) => {
        if (isOther) { context.moveTo(...toScreen(x0, y0)); context.lineTo(...toScreen(x1, y1)); }
      };
      edge(x === 0 || labels[i - 1] !== label, x, y, x, y + 1);
      edge(x === width - 1 || labels[i + 1] !== label, x + 1, y, x + 1, y + 1);
      edge(labels[i - width] !== label, x, y, x + 1, y);
      edge(labels[i + width] !== label, x, y + 1, x + 1, y + 1);
    }
    context.stroke();
  }
}

// What is outlined: the ROIs, or on a sample what the model says it painted, where it says so.
function outlined(labels) {
  const index = typeof layer === "number" && result.said ? result.slices.indexOf(z) : -1;
  return index < 0 ? labels : result.said[layer][index];
}

function rectangle([y0, x0, y1, x1], color, share) {
  const [left, top] = toScreen(x0, y0), [right, bottom] = toScreen(x1, y1);
  context.fillStyle = context.strokeStyle = color; context.lineWidth = 3;
  context.globalAlpha = share; context.fillRect(left, top, right - left, bottom - top);
  context.globalAlpha = 1; context.strokeRect(left, top, right - left, bottom - top);
}

const drawn = document.createElement("canvas");  // The picture without the brush on it.

function draw() {
  if (!scene) return;
  drawSlice();
  find("undo").disabled = !done.length;
  find("redo").disabled = !undone.length;
  for (const name of ["wipe", "copy-up", "mirror", "dilate"]) find(name).disabled = !painted.has(z);
  find("interpolate").disabled = painted.size < 2;
  find("hide").disabled = !painted.size;
  find("compare").disabled = !result;
  find("zoom-out").disabled = find("fit").disabled = view.zoom === 1;
  find("slice").value = z;
  if (document.activeElement !== find("slice-number")) find("slice-number").value = z;
  const [low, high] = windowOf(sequence);
  for (const [name, value] of [["window-low", low], ["window-high", high]]) {
    if (document.activeElement !== find(name)) find(name).value = short(value);
  }
  drawMarks(); drawBar(); drawSmall();
}

function drawSlice() {
  find("loading").hidden = isReady();
  const labels = labelsOf(z), sizes = [];
  if (isReady()) {
    context.imageSmoothingEnabled = false;
    sliceCanvas.getContext("2d").putImageData(pictureOf(sequence, z, false), 0, 0);
    const part = [view.x, view.y, width / view.zoom, height / view.zoom];
    context.drawImage(sliceCanvas, ...part, 0, 0, canvas.width, canvas.height);
    if (!hidden && !held) outline(outlined(labels));
  }
  for (const tissue of props.tissues) {
    const around = extentOf(labels, width, tissue.label);
    if (!around) continue;
    const [y0, x0, y1, x1] = around;
    if (box.has(tissue.name)) {
      const fill = layer === "before" ? Number(find("opacity").value) / 200 : 0;
      if (isReady() && !hidden && !held) rectangle(around, "rgb(" + tissue.color.join(",") + ")", fill);
      sizes.push(tissue.title + ": box " + (x1 - x0) + " x " + (y1 - y0));
    } else {
      sizes.push(tissue.title + ": " + labels.reduce((n, label) => n + (label === tissue.label), 0) + " px");
    }
  }
  if (stroke?.box) rectangle(stroke.box, "white", 0.2);
  if (corners.length) {
    context.strokeStyle = context.fillStyle = "white"; context.lineWidth = 2; context.beginPath();
    for (const [x, y] of corners) {
      const [left, top] = toScreen(x + 0.5, y + 0.5);
      context.lineTo(left, top);
      context.fillRect(left - 4, top - 4, 8, 8);
    }
    context.stroke();
  }
  find("hint").textContent = sizes.join(" · ") || "Choose a tissue and paint where it shall be.";
  drawn.width = canvas.width; drawn.height = canvas.height;
  drawn.getContext("2d").drawImage(canvas, 0, 0);
}

let pointer = null;  // The pixel under it.
function showBrush() {
  if (!isReady() || stroke) return;
  context.drawImage(drawn, 0, 0);
  if (!pointer || !(tool === "brush" || corners.length)) return;
  const [x, y] = toScreen(pointer[0] + 0.5, pointer[1] + 0.5);
  context.strokeStyle = "white"; context.lineWidth = 1.5;
  context.beginPath();
  if (corners.length) {
    const [lastX, lastY] = corners.at(-1);
    context.moveTo(...toScreen(lastX + 0.5, lastY + 0.5)); context.lineTo(x, y);
  } else context.arc(x, y, Number(find("brush").value) / 2 * scale * view.zoom, 0, 2 * Math.PI);
  context.stroke();
}

function drawMarks() {
  if (depth < 2) return;
  const marks = find("marks"), pen = marks.getContext("2d"), each = marks.width / depth;
  pen.clearRect(0, 0, marks.width, marks.height);
  pen.fillStyle = "#e69f00";
  for (const at of painted.keys()) pen.fillRect(at * each, 0, Math.max(each, 2), 4);
  pen.fillStyle = "#0d9488";
  for (const at of result ? result.slices : []) pen.fillRect(at * each, 4, Math.max(each, 2), 4);
  marks.title = "Orange: painted slices. Green: repainted slices.";
}

function drawBar() {
  const kind = shownLayer(), shows = isReady() && (kind === "difference" || kind === "std") && resultAt(sequence, z) >= 0;
  find("bar").hidden = !shows;
  if (!shows) return;
  const {top, stops} = measured(sequence, kind), pen = find("bar-colors").getContext("2d");
  for (let x = 0; x < 256; x++) {
    pen.fillStyle = "rgb(" + blend(stops, x / 255).map(Math.round).join(",") + ")";
    pen.fillRect(x, 0, 1, 1);
  }
  find("bar-low").textContent = kind === "std" ? "0" : short(-top);
  find("bar-high").textContent = short(top);
  find("bar-unit").textContent = (kind === "std" ? "standard deviation" : "after minus before") + ", in the file's units";
}

function drawSmall() {
  for (const one of element.querySelectorAll(".strip .small")) {
    const name = one.dataset.name, pen = one.querySelector("canvas").getContext("2d");
    one.classList.toggle("chosen", name === sequence);
    if (brain && volumes.has(name)) pen.putImageData(pictureOf(name, z, true), 0, 0);
  }
  if (depth > 1 && isReady() && !stroke) for (const one of element.querySelectorAll(".planes .small")) drawPlane(one);
}

// The planes through the middle of what is painted in this slice, or of the slice.
function middle() {
  const labels = labelsOf(z);
  let n = 0, sx = 0, sy = 0;
  for (let i = 0; i < labels.length; i++) if (labels[i]) { n++; sx += i % width; sy += Math.floor(i / width); }
  return n ? [Math.round(sx / n), Math.round(sy / n)] : [width >> 1, height >> 1];
}

function drawPlane(one) {
  const [cx, cy] = middle(), isCoronal = one.dataset.plane === "coronal", wide = isCoronal ? width : height;
  const pixels = new ImageData(wide, depth);
  for (let at = 0; at < depth; at++) {
    const color = colorist(sequence, at), labels = painted.get(at), row = (depth - 1 - at) * wide;
    for (let k = 0; k < wide; k++) {
      const i = isCoronal ? cy * width + k : k * width + cx;
      let rgb = at === z ? [13, 148, 136] : color(i);
      const mine = labels && labels[i] && !hidden && !held ? COLORS.get(labels[i]) : null;
      if (mine && shownLayer() === "before") rgb = rgb.map((value, c) => value + 0.45 * (mine[c] - value));
      pixels.data.set([...rgb.map(Math.round), 255], 4 * (row + k));
    }
  }
  one.querySelector("canvas").getContext("2d").putImageData(pixels, 0, 0);
}

function readOut() {
  const [x, y] = pointer ?? [-1, -1];
  if (!isReady() || x < 0 || y < 0 || x >= width || y >= height) { find("readout").textContent = ""; return; }
  const volume = volumes.get(sequence), i = y * width + x, at = z * height * width + i;
  const parts = ["pixel " + x + ", " + y];
  if (scene.sides) {
    const [right, front, up] = scene.affine.map((row) => (row[0] * x + row[1] * y + row[2] * z + row[3]).toFixed(1));
    parts.push("x " + right + ", y " + front + ", z " + up + " mm (RAS)");
  }
  parts.push((brain[at] ? "value " : "air, value ") + short(volume.low + volume.step * volume.codes[at]));
  const index = typeof layer === "number" ? resultAt(sequence, z) : -1;
  if (index >= 0 && result.masks[index][i]) {
    const sample = result.arrays.get(sequence + " " + layer);
    parts.push("after " + short(sample.low + sample.step * sample.codes[index * height * width + i]));
  }
  find("readout").textContent = parts.join(" · ");
}

// --- Edits.

// What `edit` changes, by slice, to be undone.
function change(slices, edit) {
  const before = new Map(slices.map((at) => [at, labelsOf(at).slice()]));
  edit();
  remember(before);
}

function remember(before) {
  done.push(before); undone = [];
  if (done.length > HISTORY) done.shift();
  say(""); draw(); send();
}

function step(from, to) {
  if (!from.length || stroke) return;
  const before = from.pop();
  to.push(new Map([...before.keys()].map((at) => [at, labelsOf(at).slice()])));
  for (const [at, labels] of before) put(at, labels);
  if (!before.has(z)) z = Math.min(...before.keys());
  draw(); send();
}

function pixelOf(event) {
  const area = canvas.getBoundingClientRect();
  return [
    Math.floor(view.x + (event.clientX - area.left) / area.width * width / view.zoom),
    Math.floor(view.y + (event.clientY - area.top) / area.height * height / view.zoom),
  ];
}

// Whether an event is at a pixel, or as near to its middle as a finger is exact.
function isAt(event, [x, y]) {
  const area = canvas.getBoundingClientRect(), [left, top] = toScreen(x + 0.5, y + 0.5), [ex, ey] = pixelOf(event);
  const shrink = area.width / canvas.width, lower = area.height / canvas.height;
  return (ex === x && ey === y) || Math.hypot(event.clientX - area.left - left * shrink, event.clientY - area.top - top * lower) <= 10;
}

function stamp(x, y) {
  const radius = Number(find("brush").value) / 2, reach = Math.floor(radius);
  for (let dy = -reach; dy <= reach; dy++) for (let dx = -reach; dx <= reach; dx++) {
    const inside = x + dx >= 0 && x + dx < width && y + dy >= 0 && y + dy < height;
    if (!inside || dx * dx + dy * dy > radius * radius) continue;
    const i = (y + dy) * width + x + dx;
    if (chosen !== ERASER && !isBrain(i)) { stroke.refused += 1; continue; }
    stroke.labels[i] = chosen; stroke.taken += 1;
  }
}

function line([x0, y0], [x1, y1]) {
  const steps = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1);
  for (let i = 0; i <= steps; i++) {
    stamp(Math.round(x0 + (x1 - x0) * i / steps), Math.round(y0 + (y1 - y0) * i / steps));
  }
}

function setBox([y0, x0, y1, x1]) {
  const tissue = props.tissues.find((one) => one.label === chosen);
  [y0, y1] = [Math.max(y0, 0), Math.min(y1, height)]; [x0, x1] = [Math.max(x0, 0), Math.min(x1, width)];
  if (!tissue || y1 <= y0 || x1 <= x0) { say(tissue ? "This box lies outside the slice." : "Choose a tissue for the box first; the eraser has none."); return; }
  change([z], () => {
    const labels = labelsOf(z).map((label) => (label === chosen ? 0 : label));
    for (let y = y0; y < y1; y++) labels.fill(chosen, y * width + x0, y * width + x1);
    put(z, labels);
  });
  box.add(tissue.name); find("box-" + tissue.name).checked = true;
  draw(); send();
}

function closePolygon() {
  if (!corners.length) return;
  if (corners.length < 3) { say("A polygon has at least three corners."); return; }
  const points = corners;
  corners = [];
  const labels = labelsOf(z).slice();
  let taken = 0;
  for (let i = 0; i < labels.length; i++) {
    const x = i % width, y = (i - x) / width;
    if (!inPolygon(points, x, y) || (chosen !== ERASER && !isBrain(i))) continue;
    labels[i] = chosen; taken++;
  }
  if (taken) change([z], () => put(z, labels)); else { say(AIR); draw(); }
}

const AIR = "That is air: strokes are taken inside the brain only. Untick the box beside the picture to paint there.";

canvas.addEventListener("pointerdown", (event) => {
  // A second finger would end the stroke of the first.
  if (!scene || stroke || !event.isPrimary) return;
  event.preventDefault(); canvas.focus({preventScroll: true});
  if (!isReady()) { say("This slice is not loaded yet; nothing was painted."); return; }
  canvas.setPointerCapture(event.pointerId);
  const here = pixelOf(event);
  if (event.button === 2) { stroke = {kind: "window", from: [event.clientX, event.clientY], window: windowOf(sequence)}; return; }
  if (event.button === 1 || event.shiftKey || (event.button === 0 && tool === "move")) { stroke = {kind: "pan", from: [event.clientX, event.clientY], at: {...view}}; return; }
  if (event.button !== 0) return;
  say("");
  if (tool === "polygon") {
    if (corners.length > 2 && isAt(event, corners[0])) closePolygon();
    else { corners.push(here); draw(); }
  } else if (tool === "fill") {
    const at = here[1] * width + here[0];
    if (chosen !== ERASER && !isBrain(at)) { say(AIR); return; }
    const before = labelsOf(z);
    if (before[at] === chosen) { say("This place has that label already."); return; }
    const labels = filled(before, width, at, chosen);
    if (labels && chosen !== ERASER) for (let i = 0; i < labels.length; i++) if (!isBrain(i)) labels[i] = before[i];
    if (labels) change([z], () => put(z, labels)); else say("The line around this place is not closed; nothing was filled.");
  } else if (tool === "box") {
    stroke = {kind: "box", from: here, box: [here[1], here[0], here[1] + 1, here[0] + 1]}; draw();
  } else {
    const before = labelsOf(z).slice();
    stroke = {kind: "brush", slice: z, before, labels: before.slice(), last: here, taken: 0, refused: 0};
    painted.set(z, stroke.labels);
    line(here, here); drawSlice();
  }
});
canvas.addEventListener("pointermove", (event) => {
  if (!event.isPrimary) return;
  pointer = scene ? pixelOf(event) : null;
  if (!stroke) { showBrush(); readOut(); return; }
  const area = canvas.getBoundingClientRect();
  if (stroke.kind === "window") {
    const [low, high] = stroke.window, wide = high - low;
    const center = (low + high) / 2 - (event.clientY - stroke.from[1]) / area.height * wide;
    const half = Math.max(wide / 2 * Math.exp((event.clientX - stroke.from[0]) / area.width * 2), 1e-6);
    windows.set(sequence, [center - half, center + half]);
  } else if (stroke.kind === "pan") {
    moveTo(stroke.at.x - (event.clientX - stroke.from[0]) / area.width * width / view.zoom, stroke.at.y - (event.clientY - stroke.from[1]) / area.height * height / view.zoom);
  } else if (stroke.kind === "box") {
    const [x, y] = pointer, [x0, y0] = stroke.from;
    stroke.box = [Math.min(y, y0), Math.min(x, x0), Math.max(y, y0) + 1, Math.max(x, x0) + 1];
  } else {
    const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const part of events.length ? events : [event]) {
      const here = pixelOf(part);
      line(stroke.last, here);
      stroke.last = here;
    }
  }
  drawSlice(); readOut();
});
function finish(event) {
  if (!event.isPrimary) return;
  const ended = stroke;
  stroke = null;
  if (ended?.kind === "box") setBox(ended.box);
  if (ended?.kind === "window" || ended?.kind === "pan") draw();
  if (ended?.kind === "brush") {
    put(ended.slice, ended.labels);
    if (ended.taken) remember(new Map([[ended.slice, ended.before]]));
    else { say(AIR); draw(); }
  }
}
canvas.addEventListener("pointerup", finish);
canvas.addEventListener("pointercancel", finish);
canvas.addEventListener("lostpointercapture", finish);
canvas.addEventListener("pointerleave", () => { pointer = null; if (scene) showBrush(); readOut(); });
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => {
  if (!scene || (depth < 2 && !event.ctrlKey)) return;
  event.preventDefault();
  if (event.ctrlKey) zoomTo(view.zoom * (event.deltaY < 0 ? 1.25 : 0.8), pixelOf(event)); else turnTo(z + Math.sign(event.deltaY));
}, {passive: false});

function turnTo(number) {
  if (!Number.isInteger(number) || stroke) return;
  const next = Math.min(Math.max(number, 0), depth - 1);
  if (next === z) return;
  z = next; corners = [];
  say(""); draw(); readOut();
}

function moveTo(x, y) {
  view.x = Math.min(Math.max(x, 0), width - width / view.zoom);
  view.y = Math.min(Math.max(y, 0), height - height / view.zoom);
}

function zoomTo(zoom, [x, y] = [view.x + width / view.zoom / 2, view.y + height / view.zoom / 2]) {
  const next = Math.min(Math.max(zoom, 1), 16), ratio = view.zoom / next;
  const left = x - (x - view.x) * ratio, top = y - (y - view.y) * ratio;
  view.zoom = next;
  moveTo(left, top); draw();
}

function hold(is) { if (held !== is && (result || !is)) { held = is; draw(); } }

// --- Controls.

function resize(by) {
  const brush = find("brush");
  brush.value = Number(brush.value) + by;
  find("brush-text").textContent = brush.value + " px";
  draw(); showBrush();
}

function toggleHidden() {
  hidden = !hidden;
  find("hide").setAttribute("aria-pressed", hidden);
  draw();
}

canvas.addEventListener("keydown", (event) => {
  const key = event.key, lower = key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && lower === "z") { if (event.shiftKey) step(undone, done); else step(done, undone); }
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (key >= "1" && key <= String(LABELS.length)) choose(LABELS[Number(key) - 1]);
  else if (key === "[") resize(-2);
  else if (key === "]") resize(2);
  else if (key === "ArrowUp" || key === "ArrowRight" || key === "PageUp") turnTo(z + 1);
  else if (key === "ArrowDown" || key === "ArrowLeft" || key === "PageDown") turnTo(z - 1);
  else if (key === "+" || key === "=") zoomTo(view.zoom * 1.25);
  else if (key === "-") zoomTo(view.zoom * 0.8);
  else if (lower === "h") toggleHidden();
  else if (key === " ") hold(true);
  else if (key === "Enter") closePolygon();
  else if (key === "Escape") { corners = []; draw(); }
  else return;
  event.preventDefault();
});
canvas.addEventListener("keyup", (event) => { if (event.key === " ") hold(false); });
canvas.addEventListener("blur", () => hold(false));

const on = (name, event, handler) => find(name).addEventListener(event, handler);
on("undo", "click", () => step(done, undone));
on("redo", "click", () => step(undone, done));
on("wipe", "click", () => change([z], () => put(z, new Uint8Array(height * width))));
on("brush", "input", () => resize(0));
on("opacity", "input", () => { find("opacity-text").textContent = find("opacity").value + "%"; draw(); });
on("hide", "click", toggleHidden);
on("copy-up", "click", () => {
  const count = Math.min(Math.max(Math.round(Number(find("copies").value)) || 0, 0), depth - 1 - z);
  if (!count) { say("There is no next slice to copy to."); return; }
  const targets = Array.from({length: count}, (_, i) => z + 1 + i), from = labelsOf(z);
  change(targets, () => {
    for (const at of targets) put(at, from.map((label, i) => (label && isBrain(i, at) ? label : 0)));
  });
  say("Copied to slice" + (count > 1 ? "s " + targets[0] + " to " + targets.at(-1) : " " + targets[0]) + ".");
});
on("interpolate", "click", () => {
  const slices = [...painted.keys()].sort((a, b) => a - b), gaps = [];
  for (let i = 1; i < slices.length; i++) for (let at = slices[i - 1] + 1; at < slices[i]; at++) gaps.push([at, slices[i - 1], slices[i]]);
  if (!gaps.length) { say("There is no empty slice between painted ones."); return; }
  const made = new Map();
  for (const [at, a, b] of gaps) {
    const labels = between(painted.get(a), painted.get(b), height, width, (at - a) / (b - a));
    for (let i = 0; i < labels.length; i++) if (labels[i] && !isBrain(i, at)) labels[i] = 0;
    if (labels.some((label) => label)) made.set(at, labels);
  }
  if (!made.size) { say("Nothing lies between: painted slices next to each other have no tissue in common, or lie too far apart in it."); return; }
  change([...made.keys()], () => made.forEach((labels, at) => put(at, labels)));
  say("Filled " + made.size + " slice" + (made.size > 1 ? "s" : "") + " between painted ones.");
});
on("mirror", "click", () => {
  let x0 = width, x1 = 0;
  for (let i = 0; i < height * width; i++) if (brain[z * height * width + i]) { x0 = Math.min(x0, i % width); x1 = Math.max(x1, i % width + 1); }
  const labels = mirrored(labelsOf(z), width, (x0 + x1) / 2).map((label, i) => (label && isBrain(i) ? label : 0));
  if (labels.some((label) => label)) change([z], () => put(z, labels)); else say(AIR);
});
on("dilate", "click", () => {
  if (chosen === ERASER) { say("Choose the tissue to dilate."); return; }
  change([z], () => put(z, dilated(labelsOf(z), width, chosen, isBrain)));
});
on("box-numbers", "click", () => {
  const [x0, x1, y0, y1] = ["box-x0", "box-x1", "box-y0", "box-y1"].map((name) => Math.round(Number(find(name).value)));
  if (isReady()) setBox([y0, x0, y1 + 1, x1 + 1]);
});
on("slice", "input", () => turnTo(Number(find("slice").value)));
on("slice-number", "input", () => { if (find("slice-number").value) turnTo(Number(find("slice-number").value)); });
on("zoom-in", "click", () => zoomTo(view.zoom * 1.5));
on("zoom-out", "click", () => zoomTo(view.zoom / 1.5));
on("fit", "click", () => zoomTo(1));
on("compare", "pointerdown", () => hold(true));
for (const event of ["pointerup", "pointerleave", "pointercancel", "blur"]) on("compare", event, () => hold(false));
on("compare", "keydown", (event) => { if (event.key === " " || event.key === "Enter") { event.preventDefault(); hold(true); } });
on("compare", "keyup", () => hold(false));
for (const [name, index] of [["window-low", 0], ["window-high", 1]]) on(name, "change", () => {
  const next = [...windowOf(sequence)];
  next[index] = Number(find(name).value);
  if (next[0] < next[1]) windows.set(sequence, next); else say("Black must lie below white.");
  draw();
});
on("window-reset", "click", () => {
  windows.set(sequence, [...scene.sequences.find((one) => one.name === sequence).window]); draw();
});
for (const button of element.querySelectorAll(".tool")) button.addEventListener("click", () => {
  tool = button.dataset.tool; corners = [];
  canvas.style.cursor = tool === "move" ? "grab" : "";
  for (const other of element.querySelectorAll(".tool")) other.setAttribute("aria-pressed", other === button);
  draw();
});

function choose(label) {
  chosen = label;
  for (const row of element.querySelectorAll(".tissue")) {
    const is = Number(row.dataset.label) === label;
    row.classList.toggle("chosen", is);
    row.querySelector("input[type=radio]").checked = is;
  }
}

function addRow(title, label, color, boxName) {
  const row = document.createElement("div"), pick = document.createElement("label");
  row.className = "tissue"; row.dataset.label = label; pick.className = "pick";
  const radio = document.createElement("input"), swatch = document.createElement("span");
  radio.type = "radio"; radio.name = "painter-tissue";
  radio.addEventListener("change", () => choose(label));
  swatch.className = "swatch"; swatch.style.background = color;
  pick.append(radio, swatch, title);
  row.append(pick);
  if (boxName) {
    const tick = document.createElement("label"), input = document.createElement("input");
    tick.className = "box"; tick.title = "Treat what is painted as its bounding box, one in each slice";
    input.type = "checkbox"; input.className = "box-" + boxName;
    input.setAttribute("aria-label", title + " as bounding box");
    input.addEventListener("change", () => {
      if (input.checked) box.add(boxName); else box.delete(boxName);
      draw(); send();
    });
    tick.append(input, "box");
    row.append(tick);
  }
  find("tissues").append(row);
}

// Buttons of which one is chosen.
function buildChoices(place, choices, isChosen, pick) {
  find(place).replaceChildren(...choices.map(([value, title]) => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = title;
    button.setAttribute("role", "radio"); button.setAttribute("aria-checked", isChosen(value));
    button.addEventListener("click", () => pick(value));
    return button;
  }));
  find(place).hidden = choices.length < 2;
}

function buildSequences() {
  buildChoices("sequences", scene.sequences.map((one) => [one.name, one.title]), (name) => name === sequence, showSequence);
}

function showSequence(name) {
  sequence = name;
  buildSequences(); draw();
}

function buildLayers() {
  const choices = [["before", "Before"]];
  if (result) {
    result.titles.forEach((title, i) => choices.push([i, title[0].toUpperCase() + title.slice(1)]));
    choices.push(["difference", "Difference"]);
    if (result.std) choices.push(["std", "Standard deviation"]);
  }
  buildChoices("layers", choices, (value) => value === layer, (value) => {
    layer = value;
    // Which one the difference is of.
    if (typeof value === "number") result.sample = value;
    buildLayers(); draw();
    if (value !== "before" && resultAt(sequence, z) < 0) say("This slice was not repainted here; slices that were are marked green.");
  });
}

function buildSmall() {
  const small = (title, wide, high, aspect, pick) => {
    const button = document.createElement("button"), picture = document.createElement("canvas");
    button.type = "button"; button.className = "small";
    picture.width = wide; picture.height = high; picture.style.aspectRatio = aspect;
    button.append(picture, title);
    button.addEventListener("click", pick);
    return button;
  };
  const [sz, sy, sx] = scene.spacing, many = scene.sequences.length > 1;
  find("strip").hidden = !many;
  find("strip").replaceChildren(...(many ? scene.sequences : []).map((one) => {
    const button = small(one.title, width, height, width * sx + " / " + height * sy, () => showSequence(one.name));
    button.dataset.name = one.name;
    return button;
  }));
  find("planes").replaceChildren(...[["coronal", width, sx], ["sagittal", height, sy]].map(([plane, wide, size]) => {
    const button = small(plane, wide, depth, wide * size + " / " + depth * sz, (event) => {
      const area = button.querySelector("canvas").getBoundingClientRect();
      turnTo(depth - 1 - Math.floor((event.clientY - area.top) / area.height * depth));
    });
    button.dataset.plane = plane;
    button.title = "Click to turn to a slice";
    return button;
  }));
}

for (const tissue of props.tissues) {
  addRow(tissue.title, tissue.label, "rgb(" + tissue.color.join(",") + ")", tissue.name);
}
addRow("eraser", ERASER, "transparent", null);
choose(chosen);
// What is painted is lost with the page.
window.addEventListener("beforeunload", (event) => { if (edited.size) event.preventDefault(); });
watch("value", take);
watch("result", takeResult);
take();
