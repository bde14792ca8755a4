// Shows a case and its results, and paints a label map on it. `props.value` comes from `views.case_view`, is
// replaced by what is painted, {key, serial, edits, box}, and `props.result` comes from `views.result_view`.
const find = (name) => element.querySelector("." + name);
const canvas = find("view"), context = canvas.getContext("2d");
const ERASER = 0;
const HISTORY = 100;
const THUMB = 16;  // Of a slider, in pixels.
const COLORS = new Map(props.tissues.map((tissue) => [tissue.label, tissue.color]));
const LABELS = [...props.tissues.map((tissue) => tissue.label), ERASER];

let scene = null;  // What the server said of the case.
let depth = 0, height = 0, width = 0, scale = 1;
let volumes = new Map(), brain = null;  // Sequence -> array; both null or missing until they are here.
let windows = new Map();  // Sequence -> [black, white] in the file's units.
let painted = new Map();  // Slice -> labels; slices without any are not in it.
let edited = new Set(), serial = 0;
let isTouched = false;  // Whether ROIs are other than those that the images came with.
let box = new Set();
let sequence = "", z = 0, layer = "before", held = false, hidden = false;
let result = null;  // As the server said, with `arrays`.
let tool = "brush", chosen = LABELS[0];
let done = [], undone = [];  // Of what `stateOf` gives.
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
  // ROIs of a file or of the case's tumor take the place of what was painted, which can be undone.
  if (!isNew) remember(stateOf([...new Set([...painted.keys(), ...Object.keys(value.painted).map(Number)])]));
  scene = value;
  [depth, height, width] = scene.shape;
  painted = new Map(Object.entries(scene.painted).map(([at, runs]) => [Number(at), decodeRuns(runs, height * width)]));
  box = new Set(scene.box);
  isTouched = !isNew; stroke = null; corners = [];
  z = scene.first;
  serial = isNew ? scene.serial : Math.max(serial, scene.serial);
  if (isNew) {
    edited = new Set(); done = []; undone = [];
    forgetArrays(); volumes = new Map(); brain = null;
    find("loading").textContent = "Loading the images ...";
    windows = new Map(scene.sequences.map((one) => [one.name, [...one.window]]));
    sequence = scene.sequences[0].name; result = null;
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
  layer = "before"; tickBoxes(); buildLayers(); say(""); draw();
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
    if (scene.key !== mine.key) return;
    find("loading").textContent = "The images could not be loaded (" + error.message + "). Reload the page and try again.";
  }
}

let asked = 0;  // Results, of which the last one counts.

async function takeResult() {
  const next = props.result, mine = ++asked;
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
    next.rois = next.roi.map((runs) => decodeRuns(runs, height * width));
  } catch (error) {
    if (mine !== asked || next.key !== scene.key) return;
    say("The result could not be loaded (" + error.message + "). It is among the downloads.");
    return;
  }
  if (mine !== asked || next.key !== scene.key) return;
  result = next;
  if (!result.slices.includes(z)) z = result.first;
  layer = 0;
  buildLayers(); draw();
  say("This is the result of run " + result.run + (result.said ? "; what the model says it painted is shown by Labels painted" : "") + ". Hold the button below the picture, or the space bar on it, to see what was there before.");
  canvas.scrollIntoView({block: "center"});
}

function send() {
  const edits = {};
  isTouched = true;
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
  const start = index * size, mask = result.rois[index];
  if (typeof now === "number" || now === "labels") {
    const number = now === "labels" ? result.sample : now, said = now === "labels" ? result.said[number][index] : null;
    const sample = result.arrays.get(name + " " + number), after = grays(sample, low, high), opacity = Number(find("opacity").value) / 100;
    return (i) => {
      const g = mask[i] ? after[sample.codes[start + i]] : gray[before.codes[base + i]], mine = said && mask[i] && COLORS.get(said[i]);
      return mine ? mine.map((value) => g + opacity * (value - g)) : [g, g, g];
    };
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
      for (let i = 0; i < size; i++) if (result.rois[index][i]) top = Math.max(top, Math.abs(value(index, i, at * size)));
    });
    result.tops.set(known, top);
  }
  return {top: result.tops.get(known), value, stops};
}

function pictureOf(name, at, withOutline) {
  const pixels = new ImageData(width, height), color = colorist(name, at), [labels] = roisAt(at);
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

// The ROIs of a slice, and which of them are boxes: what is painted, or on a result those of its run.
function roisAt(at) {
  if (layer === "before") return [labelsOf(at), box];
  return [result.rois[result.slices.indexOf(at)] ?? new Uint8Array(height * width), new Set(result.box)];
}

// What is painted is for the next run, and on the images as they were.
function showBefore() {
  if (layer !== "before") { layer = "before"; buildLayers(); }
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
  for (const name of ["wipe", "mirror"]) find(name).disabled = !painted.has(z);
  find("copy-up").disabled = !painted.has(z) || z === depth - 1;
  find("dilate").disabled = chosen === ERASER || !labelsOf(z).includes(chosen);
  find("box-numbers").disabled = chosen === ERASER;
  find("interpolate").disabled = painted.size < 2;
  find("hide").disabled = !painted.size && !result;
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
  const [labels, boxes] = roisAt(z), sizes = [];
  if (isReady()) {
    context.imageSmoothingEnabled = false;
    sliceCanvas.getContext("2d").putImageData(pictureOf(sequence, z, false), 0, 0);
    const part = [view.x, view.y, width / view.zoom, height / view.zoom];
    context.drawImage(sliceCanvas, ...part, 0, 0, canvas.width, canvas.height);
    if (!hidden && !held) outline(labels);
  }
  for (const tissue of props.tissues) {
    const around = extentOf(labels, width, tissue.label);
    if (!around) continue;
    const [y0, x0, y1, x1] = around;
    if (boxes.has(tissue.name)) {
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
  find("hint").textContent = sizes.join(" · ") || (layer === "before" ? "Choose a tissue and paint where it shall be." : "Nothing was repainted in this slice.");
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

// Below the slider, each under the place of its thumb.
function drawMarks() {
  if (depth < 2) return;
  const marks = find("marks"), pen = marks.getContext("2d");
  marks.width = Math.max(marks.clientWidth, 1);
  const each = (marks.width - THUMB) / (depth - 1), wide = Math.max(each, 2);
  pen.fillStyle = "#e69f00";
  for (const at of painted.keys()) pen.fillRect(THUMB / 2 + at * each - wide / 2, 0, wide, 4);
  pen.fillStyle = "#0d9488";
  for (const at of result ? result.slices : []) pen.fillRect(THUMB / 2 + at * each - wide / 2, 4, wide, 4);
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
  const [labels] = roisAt(z);
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
  if (index >= 0 && result.rois[index][i]) {
    const sample = result.arrays.get(sequence + " " + layer);
    parts.push("after " + short(sample.low + sample.step * sample.codes[index * height * width + i]));
  }
  find("readout").textContent = parts.join(" · ");
}
