// Paints a label map of the slice's own pixels. `props.value` is {slice, shape, aspect, runs, box}: runs
// is a run-length code of the labels, row by row; box names the tissues that become boxes.
// `props.picture` is the slice as a data URL, `props.tissues` what can be painted.
const find = (name) => element.querySelector("." + name);
const canvas = find("view"), context = canvas.getContext("2d");
const overlay = document.createElement("canvas");
const colors = new Map(props.tissues.map((tissue) => [tissue.label, tissue.color]));
const ERASER = 0;
const HISTORY = 100;

let height = 0, width = 0, scale = 1;
let labels = new Uint8Array(0);
let box = new Set();
let chosen = props.tissues[0].label;
let undone = [], done = [];
let last = null;  // The pixel where the pointer was; null between strokes.
let before = null;  // The labels before this stroke.
const picture = new Image();

function decode(runs) {
  const out = new Uint8Array(height * width);
  let at = 0;
  for (let i = 0; i < runs.length; i += 2) { out.fill(runs[i], at, at + runs[i + 1]); at += runs[i + 1]; }
  return out;
}

function encode() {
  const runs = [];
  for (let start = 0, i = 1; i <= labels.length; i++) {
    if (i === labels.length || labels[i] !== labels[start]) { runs.push(labels[start], i - start); start = i; }
  }
  return runs;
}

function send() {
  props.value = {...props.value, runs: encode(), box: [...box]};
  trigger("input");
}

function take() {
  const value = props.value;
  find("stage").hidden = find("tools").hidden = !value;
  if (!value) return;
  [height, width] = value.shape;
  labels = decode(value.runs);
  box = new Set(value.box);
  for (const side of element.querySelectorAll(".side")) side.hidden = !value.sides;
  done = []; undone = []; last = null;
  // Whole screen pixels for each pixel of the slice, so that none is drawn wider than its neighbor.
  scale = Math.max(1, Math.ceil(720 / Math.max(height, width)));
  canvas.width = width * scale; canvas.height = height * scale;
  canvas.style.aspectRatio = width + " / " + height * value.aspect;
  canvas.style.height = "auto";
  overlay.width = width; overlay.height = height;
  for (const tissue of props.tissues) {
    find("box-" + tissue.name).checked = box.has(tissue.name);
  }
  draw();
}

function show() {
  if (props.picture) picture.src = props.picture;
}

function extent(label) {
  let y0 = height, x0 = width, y1 = -1, x1 = -1;
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) {
    if (labels[i] !== label) continue;
    if (y < y0) y0 = y;
    if (x < x0) x0 = x;
    if (x > x1) x1 = x;
    y1 = y;
  }
  return y1 < 0 ? null : [y0, x0, y1 + 1, x1 + 1];
}

function draw() {
  if (!props.value) return;
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const pixels = new ImageData(width, height);
  for (let i = 0; i < labels.length; i++) {
    if (labels[i]) pixels.data.set([...colors.get(labels[i]), 150], 4 * i);
  }
  overlay.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  const sizes = [];
  for (const tissue of props.tissues) {
    const around = extent(tissue.label);
    if (!around) continue;
    const [y0, x0, y1, x1] = around, color = "rgb(" + tissue.color.join(",") + ")";
    if (box.has(tissue.name)) {
      context.fillStyle = color; context.globalAlpha = 0.3;
      context.fillRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
      context.globalAlpha = 1; context.strokeStyle = color; context.lineWidth = 3;
      context.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
      sizes.push(tissue.title + ": box " + (x1 - x0) + " x " + (y1 - y0));
    } else {
      sizes.push(tissue.title + ": " + labels.reduce((n, label) => n + (label === tissue.label), 0) + " px");
    }
  }
  find("hint").textContent = sizes.join(" · ") || "Choose a tissue and paint where it shall be.";
  find("undo").disabled = !done.length;
  find("redo").disabled = !undone.length;
}

function pixelOf(event) {
  const area = canvas.getBoundingClientRect();
  return [
    Math.floor((event.clientX - area.left) / area.width * width),
    Math.floor((event.clientY - area.top) / area.height * height),
  ];
}

function stamp(x, y) {
  const radius = Number(find("brush").value) / 2, reach = Math.floor(radius);
  for (let dy = -reach; dy <= reach; dy++) for (let dx = -reach; dx <= reach; dx++) {
    const inside = x + dx >= 0 && x + dx < width && y + dy >= 0 && y + dy < height;
    if (inside && dx * dx + dy * dy <= radius * radius) labels[(y + dy) * width + x + dx] = chosen;
  }
}

function line([x0, y0], [x1, y1]) {
  const steps = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1);
  for (let i = 0; i <= steps; i++) {
    stamp(Math.round(x0 + (x1 - x0) * i / steps), Math.round(y0 + (y1 - y0) * i / steps));
  }
}

function change(edit) {
  done.push(labels.slice()); undone = [];
  if (done.length > HISTORY) done.shift();
  edit();
  draw(); send();
}

function step(from, to) {
  if (!from.length) return;
  to.push(labels); labels = from.pop();
  draw(); send();
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !props.value) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  before = labels.slice();
  last = pixelOf(event);
  line(last, last); draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const part of events.length ? events : [event]) {
    const here = pixelOf(part);
    line(last, here);
    last = here;
  }
  draw();
});
function finish() {
  if (!last) return;
  last = null;
  done.push(before); undone = [];
  if (done.length > HISTORY) done.shift();
  draw(); send();
}
canvas.addEventListener("pointerup", finish);
canvas.addEventListener("pointercancel", finish);
canvas.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
  event.preventDefault();
  if (event.shiftKey) step(undone, done); else step(done, undone);
});
find("undo").addEventListener("click", () => step(done, undone));
find("redo").addEventListener("click", () => step(undone, done));
find("wipe").addEventListener("click", () => change(() => { labels = new Uint8Array(height * width); }));
find("brush").addEventListener("input", () => { find("brush-text").textContent = find("brush").value + " px"; });

function choose(label, row) {
  chosen = label;
  for (const other of element.querySelectorAll(".tissue")) other.classList.toggle("chosen", other === row);
}

function addRow(title, label, color, boxName) {
  const row = document.createElement("div"), pick = document.createElement("label");
  row.className = "tissue"; pick.className = "pick";
  const radio = document.createElement("input"), swatch = document.createElement("span");
  radio.type = "radio"; radio.name = "painter-tissue"; radio.checked = label === chosen;
  radio.addEventListener("change", () => choose(label, row));
  swatch.className = "swatch"; swatch.style.background = color;
  pick.append(radio, swatch, title);
  row.append(pick);
  if (boxName) {
    const tick = document.createElement("label"), input = document.createElement("input");
    tick.className = "box"; tick.title = "Treat the painted area as its bounding box";
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
  if (label === chosen) choose(label, row);
}

for (const tissue of props.tissues) {
  addRow(tissue.title, tissue.label, "rgb(" + tissue.color.join(",") + ")", tissue.name);
}
addRow("eraser", ERASER, "transparent", null);
picture.addEventListener("load", draw);
watch("value", take);
watch("picture", show);
take();
show();
