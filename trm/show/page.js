"use strict";
// Draws the frame that the two sliders name. Text from the run enters as text only.
const data = JSON.parse(document.getElementById("data").textContent);
const { rows, columns, recursions, frames } = data;
const byId = (id) => document.getElementById(id);
const [step, recursion, play, curve] = ["step", "recursion", "play", "curve"].map(byId);
const FRAME_MS = 350;

// ------------------------------------------------------------------------------------------------------------- grid

const grid = byId("grid");
grid.style.setProperty("--columns", columns);
grid.style.setProperty("--rows", rows);
const cells = [];
for (let row = 0; row < rows; row++) {
  const line = grid.insertRow();
  for (let column = 0; column < columns; column++) {
    const cell = line.insertCell();
    cell.append(document.createElement("span"), document.createElement("i"));
    cell.lastChild.className = "confidence";
    if (data.heavy_rows.includes(row)) cell.classList.add("box-top");
    if (data.heavy_columns.includes(column)) cell.classList.add("box-left");
    const index = cells.push(cell) - 1;
    cell.addEventListener("pointerenter", () => { pointed = index; describe(); });
  }
}
let pointed = null;

const at = () => (Number(step.value) - 1) * recursions + Number(recursion.value) - 1;
const has = (marks, flag) => Boolean((marks >> data.flags.indexOf(flag)) & 1);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const count = (frame, flag) => frame.marks.filter((marks) => has(marks, flag)).length;

function about(frame, index) {
  const words = [`row ${Math.floor(index / columns) + 1} column ${(index % columns) + 1}: ${frame.answer[index]}`];
  words.push(`confidence ${percent(frame.confidence[index])}`);
  words.push(...data.flags.filter((flag) => has(frame.marks[index], flag)));
  if (data.solution !== null && data.solution[index] !== frame.answer[index]) words.push(`solution ${data.solution[index]}`);
  return words.join(", ");
}

function describe() {
  if (pointed !== null) byId("cell").textContent = about(frames[at()], pointed);
}

function draw() {
  const frame = frames[at()];
  cells.forEach((cell, index) => {
    cell.firstChild.textContent = frame.answer[index];
    cell.lastChild.style.setProperty("--share", frame.confidence[index]);
    for (const flag of data.flags) cell.classList.toggle(flag, has(frame.marks[index], flag));
    cell.title = about(frame, index);
  });
  byId("step-now").textContent = `${step.value} of ${step.max}`;
  byId("recursion-now").textContent = `${recursion.value} of ${recursions}`;
  byId("status").textContent = `Step ${step.value}, recursion ${recursion.value}: ${count(frame, "wrong")} wrong, ` +
    `${count(frame, "changed")} changed; halting probability ${frame.halting.toFixed(3)}.`;
  const items = frame.violations.map((number) => {
    const item = document.createElement("li");
    item.textContent = data.violations[number];
    return item;
  });
  byId("violations").replaceChildren(...items);
  if (!items.length) byId("violations").textContent = "none";
  const now = byId("now");
  now.setAttribute("cx", x(at()));
  now.setAttribute("cy", y(frame.halting));
  describe();
}

// ------------------------------------------------------------------------------------------------------------ curve

const [LEFT, RIGHT, TOP, BOTTOM] = [30, 410, 10, 125]; // of the view box 420 x 150
const x = (index) => LEFT + ((RIGHT - LEFT) * (index + 1)) / frames.length;
const y = (share) => BOTTOM - (BOTTOM - TOP) * share;

function add(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  curve.append(element);
}

for (const share of [0, 0.5, 1]) {
  add("line", { class: share === 0.5 ? "threshold" : "axis", x1: LEFT, x2: RIGHT, y1: y(share), y2: y(share) });
  add("text", { x: LEFT - 6, y: y(share) + 4, "text-anchor": "end" }, share);
}
add("text", { x: RIGHT, y: 145, "text-anchor": "end" }, `step ${step.max}`);
add("text", { x: LEFT, y: 145 }, "start");
add("polyline", { points: frames.map((frame, index) => `${x(index)},${y(frame.halting)}`).join(" ") });
frames.forEach((frame, index) => {
  if ((index + 1) % recursions === 0) add("circle", { class: "step", cx: x(index), cy: y(frame.halting), r: 3 });
});
add("circle", { id: "now", r: 6 });

// --------------------------------------------------------------------------------------------------------- controls

function go(index) {
  step.value = Math.floor(index / recursions) + 1;
  recursion.value = (index % recursions) + 1;
  draw();
}

let timer = null;
function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}
play.addEventListener("click", () => {
  if (timer !== null) return stop();
  go(at() === frames.length - 1 ? 0 : at());
  play.textContent = "Stop";
  timer = setInterval(() => (at() === frames.length - 1 ? stop() : go(at() + 1)), FRAME_MS);
});
for (const slider of [step, recursion]) slider.addEventListener("input", () => { stop(); draw(); });
curve.addEventListener("click", (event) => {
  const box = curve.getBoundingClientRect();
  const index = Math.round((((event.clientX - box.left) / box.width) * 420 - LEFT) / (RIGHT - LEFT) * frames.length) - 1;
  stop();
  go(Math.min(Math.max(index, 0), frames.length - 1));
});
draw();
