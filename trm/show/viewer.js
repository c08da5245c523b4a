"use strict";
// Draws the puzzles of one run into an element that holds their JSON (trm/show/page.py). A frame is the answer after one recursion
// of one supervision step; all puzzles show the same one. Text from the run enters as text only.
const FRAME_MS = 350;
const [LEFT, RIGHT, TOP, BOTTOM] = [30, 410, 10, 125]; // of a curve's view box 420 x 150
const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function add(parent, name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

function viewer(root) {
  const { view, flags, recursions, puzzles } = JSON.parse(root.querySelector("script").textContent);
  const count = puzzles[0].frames.length; // of frames
  const controls = add(root, "div", "controls");
  const slider = (name, words, max) => {
    const [label, input, now] = ["label", "input", "output"].map((kind) => add(controls, kind, name));
    label.textContent = words;
    Object.assign(input, { type: "range", min: 1, max, value: max, ariaLabel: words });
    for (const element of [label, input, now]) element.hidden = max === 1 && name === "recursion";
    input.addEventListener("input", () => { stop(); draw(); });
    return [input, now];
  };
  const [step, stepNow] = slider("step", "supervision step", count / recursions);
  const [recursion, recursionNow] = slider("recursion", "recursion", recursions);
  const play = add(controls, "button", "play", "Play");
  const place = add(root, "div", "puzzles");
  for (const name of ["rows", "columns"]) place.style.setProperty(`--${name}`, view[name]);
  const drawings = puzzles.map((puzzle) => figure(place, puzzle, view, flags, recursions, (index) => { stop(); go(index); }));

  const at = () => (Number(step.value) - 1) * recursions + Number(recursion.value) - 1;
  const draw = () => {
    stepNow.textContent = `${step.value} of ${step.max}`;
    recursionNow.textContent = `${recursion.value} of ${recursions}`;
    drawings.forEach((drawing) => drawing(at()));
  };
  const go = (index) => {
    step.value = Math.floor(index / recursions) + 1;
    recursion.value = (index % recursions) + 1;
    draw();
  };
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  play.type = "button";
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    go(at() === count - 1 ? 0 : at());
    play.textContent = "Stop";
    timer = setInterval(() => (at() === count - 1 ? stop() : go(at() + 1)), FRAME_MS);
  });
  draw();
}

// One puzzle: its grid, its curve, what is wrong. Returns what draws a frame; `go` is called with the frame that is asked for.
function figure(place, puzzle, view, flags, recursions, go) {
  const { rows, columns, symbols, colours, line } = view;
  const question = bytes(puzzle.question);
  const solution = puzzle.solution && bytes(puzzle.solution);
  const frames = puzzle.frames.map((frame) => ({
    ...frame, answer: bytes(frame.answer), marks: bytes(frame.marks), confidence: new Uint16Array(bytes(frame.confidence).buffer),
  }));
  const made = add(place, "figure");
  const box = add(made, "div", "grid");
  const [table, path] = [add(box, "table", "cells"), line.length ? add(box, "div", "path") : null];
  table.ariaLabel = `the model's answer to ${puzzle.name}`;
  const caption = add(made, "figcaption");
  const status = add(caption, "p", "status");
  status.role = "status";
  const curve = curveOf(caption, frames, recursions, go);
  const details = add(caption, "details");
  const [summary, violations] = [add(details, "summary"), add(details, "ul", "violations")];
  details.open = place.closest(".alone") !== null;
  const about = details.open && add(caption, "p", "about soft", "Point at a cell for its confidence.");

  let [shown, pointed] = [frames.length - 1, null];
  const has = (flag, index) => Boolean((frames[shown].marks[index] >> flags.indexOf(flag)) & 1);
  const unlike = (name, grid, index) => // what is not known has no symbol
    (symbols[grid[index]] && grid[index] !== frames[shown].answer[index] ? [`${name} ${symbols[grid[index]]}`] : []);
  const words = (index) => [
    `row ${Math.floor(index / columns) + 1} column ${(index % columns) + 1}: ${symbols[frames[shown].answer[index]]}`,
    `confidence ${percent(frames[shown].confidence[index] / 65535)}`,
    ...flags.filter((flag) => has(flag, index)),
    ...(has("given", index) ? unlike("question", question, index) : []),
    ...(solution ? unlike("solution", solution, index) : []),
  ].join(", ");
  const describe = () => { if (about && pointed !== null) about.textContent = words(pointed); };
  const cells = Array.from({ length: rows * columns }, (_, index) => {
    const row = index % columns ? table.rows[table.rows.length - 1] : table.insertRow();
    const cell = row.insertCell();
    cell.append(document.createElement("span"), document.createElement("i"));
    cell.addEventListener("pointerenter", () => { pointed = index; describe(); });
    return cell;
  });

  return (index) => {
    shown = index;
    const frame = frames[index];
    cells.forEach((cell, i) => {
      const [ground, glyph] = colours[frame.answer[i]] ?? ["", ""];
      cell.className = ["cell", ...flags.filter((flag) => has(flag, i))].join(" ");
      cell.classList.toggle("coloured", ground !== "");
      cell.classList.toggle("box-top", view.heavy_rows.includes(Math.floor(i / columns)));
      cell.classList.toggle("box-left", view.heavy_columns.includes(i % columns));
      cell.firstChild.textContent = symbols[frame.answer[i]];
      const properties = { "--ground": ground, "--glyph": glyph, "--share": frame.confidence[i] / 65535 };
      for (const [name, value] of Object.entries(properties)) cell.style.setProperty(name, value);
      cell.title = words(i);
    });
    if (path) path.innerHTML = pathOf(frame.answer, view); // nothing but numbers enters its markup
    const [wrong, changed] = ["wrong", "changed"].map((flag) => cells.filter((_, i) => has(flag, i)).length);
    status.replaceChildren();
    add(status, "strong", "", puzzle.name);
    const verdict = wrong ? `${wrong} of ${cells.length} wrong` : puzzle.judged ? "solved" : "not known whether right";
    status.append(` ${verdict}, ${changed} changed; halting ${frame.halting.toFixed(3)}`);
    summary.textContent = `Violations: ${frame.violations.length || "none"}`;
    violations.replaceChildren();
    for (const number of frame.violations) add(violations, "li", "", puzzle.violations[number]);
    curve(index);
    describe();
  };
}

// A line from cell to cell between neighbours whose tokens a line joins.
function pathOf(answer, { rows, columns, line }) {
  const joined = (row, column) => row < rows && column < columns && line.includes(answer[row * columns + column]);
  const pieces = Array.from(answer, (_, index) => {
    const [row, column] = [Math.floor(index / columns), index % columns];
    const piece = (there, way) => (joined(row, column) && there ? `M${column + 0.5} ${row + 0.5}${way}1` : "");
    return piece(joined(row, column + 1), "h") + piece(joined(row + 1, column), "v");
  });
  return `<svg viewBox="0 0 ${columns} ${rows}" aria-hidden="true"><path d="${pieces.join("")}"/></svg>`;
}

// The halting probability of all frames. Returns what moves the mark to a frame. Nothing but numbers enters its markup.
function curveOf(place, frames, recursions, go) {
  const x = (index) => LEFT + ((RIGHT - LEFT) * (index + 1)) / frames.length;
  const y = (share) => BOTTOM - (BOTTOM - TOP) * share;
  const ends = frames.map((_, index) => index).filter((index) => (index + 1) % recursions === 0);
  const rule = (share) => `
    <line class="${share === 0.5 ? "threshold" : "axis"}" x1="${LEFT}" x2="${RIGHT}" y1="${y(share)}" y2="${y(share)}"/>
    <text x="${LEFT - 6}" y="${y(share) + 4}" text-anchor="end">${share}</text>`;
  const svg = add(place, "div", "curve");
  svg.innerHTML = `<svg viewBox="0 0 420 150" role="img" aria-label="halting probability">${[0, 0.5, 1].map(rule).join("")}
    <text x="${LEFT}" y="145">start: halting probability</text>
    <text x="${RIGHT}" y="145" text-anchor="end">step ${ends.length}</text>
    <polyline points="${frames.map((frame, index) => `${x(index)},${y(frame.halting)}`).join(" ")}"/>
    ${ends.map((index) => `<circle class="end" cx="${x(index)}" cy="${y(frames[index].halting)}" r="3"/>`).join("")}
    <circle class="now" r="6"/></svg>`;
  const now = svg.querySelector(".now");
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const index = Math.round(((((event.clientX - box.left) / box.width) * 420 - LEFT) / (RIGHT - LEFT)) * frames.length) - 1;
    go(Math.min(Math.max(index, 0), frames.length - 1));
  });
  return (index) => {
    now.setAttribute("cx", x(index));
    now.setAttribute("cy", y(frames[index].halting));
  };
}

for (const root of document.querySelectorAll(".viewer")) viewer(root);
