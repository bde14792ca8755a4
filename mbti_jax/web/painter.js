// The controls around the picture.

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
  if (!count) { say("Say to how many slices."); return; }
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
on("dilate", "click", () => change([z], () => put(z, dilated(labelsOf(z), width, chosen, isBrain))));
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
  draw();
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
      change([], () => { if (input.checked) box.add(boxName); else box.delete(boxName); });
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
    if (result.said) choices.push(["labels", "Labels painted"]);
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
// What was made here, and the history of runs, is lost with the page.
window.addEventListener("beforeunload", (event) => { if (isTouched || result) event.preventDefault(); });
new ResizeObserver(drawMarks).observe(find("marks"));
watch("value", take);
watch("result", takeResult);
take();
