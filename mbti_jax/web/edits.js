// What strokes, boxes, polygons and keys do to the label maps, and to what is shown of them.

// What is to be undone: the label maps of slices, and which tissues are boxes.
function stateOf(slices) { return {labels: new Map(slices.map((at) => [at, labelsOf(at).slice()])), box: new Set(box)}; }

function change(slices, edit) {
  const before = stateOf(slices);
  edit();
  remember(before);
  showBefore(); say(""); draw(); send();
}

function remember(before) {
  done.push(before); undone = [];
  if (done.length > HISTORY) done.shift();
}

function tickBoxes() { for (const tissue of props.tissues) find("box-" + tissue.name).checked = box.has(tissue.name); }

function step(from, to) {
  if (!from.length || stroke) return;
  const before = from.pop(), slices = [...before.labels.keys()];
  to.push(stateOf(slices));
  for (const [at, labels] of before.labels) put(at, labels);
  box = before.box; tickBoxes();
  if (slices.length && !before.labels.has(z)) z = Math.min(...slices);
  showBefore(); draw(); send();
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
  if (!tissue || y1 <= y0 || x1 <= x0) { say(tissue ? "This box lies outside the slice." : "Choose a tissue for the box first; the eraser has none."); draw(); return; }
  let isInBrain = false;
  for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) isInBrain ||= isBrain(y * width + x);
  if (!isInBrain) { say(AIR); draw(); return; }
  change([z], () => {
    const labels = labelsOf(z).map((label) => (label === chosen ? 0 : label));
    for (let y = y0; y < y1; y++) labels.fill(chosen, y * width + x0, y * width + x1);
    put(z, labels);
    box.add(tissue.name); tickBoxes();
  });
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

const AIR = "That is air: strokes are taken inside the brain only, and boxes that reach into it. Untick \"Paint inside the brain only\" to paint there.";

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
  showBefore(); say("");
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
    if (ended.taken) { remember({labels: new Map([[ended.slice, ended.before]]), box: new Set(box)}); send(); }
    say(ended.taken ? "" : AIR); draw();
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
