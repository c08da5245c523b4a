"use strict";
// Draws each run's puzzles after the supervision step that its slider names. Text from the run enters as text only.
const NO_LABEL = 255; // as in thinking.py
const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// A puzzle's figure, and what draws a step (from 0) into it.
function figureOf(puzzle, number, data) {
  const { rows, columns, symbols } = data;
  const [question, solution] = [puzzle.question, puzzle.solution].map(bytes);
  const [answers, confidence] = [puzzle.answers, puzzle.confidence].map((all) => all.map(bytes));
  const figure = element("figure");
  const table = element("table", "cells");
  const cells = [];
  for (let row = 0; row < rows; row++) {
    const line = table.insertRow();
    if (data.heavy_rows.includes(row)) line.className = "box-top";
    for (let column = 0; column < columns; column++) cells.push(line.insertCell());
  }
  const caption = element("figcaption");
  const [verdict, halting, bar, probability] = ["span", "div", "i", "span"].map((name) => element(name));
  halting.className = "halting";
  halting.append("halting", bar, probability);
  caption.append(element("strong", "", `test:${number} `), verdict, halting);
  figure.append(table, caption);

  const draw = (step) => {
    const [answer, before] = [answers[step], answers[step - 1]];
    let wrongCells = 0;
    cells.forEach((cell, index) => {
      const [token, label] = [answer[index], solution[index]];
      const wrong = label !== NO_LABEL && token !== label;
      const given = label !== NO_LABEL && question[index] === label;
      const changed = before !== undefined && token !== before[index];
      const share = confidence[step][index] / 255;
      wrongCells += wrong;
      cell.className = "cell";
      cell.classList.toggle("box-left", data.heavy_columns.includes(index % columns));
      Object.entries({ given, wrong, changed }).forEach(([name, on]) => cell.classList.toggle(name, on));
      cell.textContent = symbols[token];
      cell.style.setProperty("--share", share);
      cell.title = `row ${Math.floor(index / columns) + 1} column ${(index % columns) + 1}: ${symbols[token]}, confidence ` +
        `${(100 * share).toFixed(0)} %${wrong ? `, solution ${symbols[label]}` : ""}`;
    });
    verdict.textContent = wrongCells ? `${wrongCells} of ${cells.length} wrong` : "solved";
    bar.style.setProperty("--share", puzzle.halting[step]);
    probability.textContent = puzzle.halting[step].toFixed(3);
    table.ariaLabel = `the answer to test:${number} after supervision step ${step + 1}`;
  };
  return [figure, draw];
}

for (const section of document.querySelectorAll("section.thinking")) {
  const [slider, now, json] = ["input", "output", "script"].map((name) => section.querySelector(name));
  if (!json) continue; // its samples cannot be shown
  const data = JSON.parse(json.textContent);
  const made = data.puzzles.map((puzzle, number) => figureOf(puzzle, number, data));
  section.querySelector(".puzzles").append(...made.map(([figure]) => figure));
  const draw = () => {
    now.textContent = `${slider.value} of ${slider.max}`;
    made.forEach(([, drawStep]) => drawStep(Number(slider.value) - 1));
  };
  slider.addEventListener("input", draw);
  draw();
}
