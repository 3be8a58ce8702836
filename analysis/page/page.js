async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}
const data = await unpacked(document.getElementById("data").textContent);
for (const image of document.querySelectorAll("img[data-figure]")) {
  image.src = `data:image/svg+xml,${encodeURIComponent(data.figures[image.dataset.figure])}`;
}
const SVG = "http://www.w3.org/2000/svg";

// Creates elements; strings become text nodes, never HTML.
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function draw(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function shown(value) {
  if (value === null || value === undefined) return "-";
  if (typeof value === "number") return String(+value.toPrecision(7));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// Tables: a click on a head sorts the rows, numbers first and by value; a second click reverses the order.
function key(row, at) {
  const cell = row.cells[at];
  if (cell === undefined) return { number: NaN, text: "" };
  const text = cell.textContent.trim();
  const own = cell.dataset.value;
  return { number: own !== undefined ? +own : text === "" ? NaN : Number(text.replaceAll(",", "")), text };
}

function compare(one, other) {
  const numbers = [!Number.isNaN(one.number), !Number.isNaN(other.number)];
  if (numbers[0] && numbers[1]) return one.number - other.number;
  if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
  return one.text.localeCompare(other.text, "en", { numeric: true });
}

for (const table of document.querySelectorAll("table.sorted")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, at) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, at), row]);
      rows.sort((a, b) => {
        const lacking = [a, b].map(([value]) => Number.isNaN(value.number) && value.text === "");
        if (lacking[0] !== lacking[1]) return lacking[0] ? 1 : -1;
        return down ? compare(b[0], a[0]) : compare(a[0], b[0]);
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

for (const input of document.querySelectorAll(".switch input")) {
  input.addEventListener("change", () => {
    for (const view of input.closest("section").querySelectorAll(".view")) view.hidden = view.dataset.view !== input.value;
  });
}

// The dialogs with the runs behind a cell, and with the details of a run.
const dialog = document.getElementById("detail");

function open(title, ...parts) {
  const close = el("button", { class: "close", type: "button", "aria-label": "close", onclick: () => dialog.close() }, "×");
  dialog.firstElementChild.replaceChildren(close, el("h2", { id: "detail-title" }, title), ...parts);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("close", () => {
  if (/^#(run|cell)-/.test(location.hash)) history.replaceState(null, "", location.pathname + location.search);
});

function pairs(entries) {
  const rows = entries.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, shown(value))));
  return el("div", { class: "wide" }, el("table", {}, el("tbody", {}, ...rows)));
}

function lines(heads, rows) {
  const head = el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)));
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, cell instanceof Node ? cell : shown(cell)))));
  return el("div", { class: "wide" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

function link(run) {
  return el("a", { href: `#run-${run}` }, run);
}

function showCell(sweep, cell) {
  const cells = data.sections[sweep].cells;
  if (!(cell in cells)) return;
  const place = cell.replace(/ ?split=\S+$/, "");
  const splits = Object.keys(cells).filter((other) => other.replace(/ ?split=\S+$/, "") === place);
  const rows = cells[cell].map(([run, seed], at) => [
    seed, ...splits.map((split) => cells[split][at][2]), (data.runs[run] || {}).state, link(run)]);
  const heads = splits.map((split) => split.match(/split=(\S+)$/)[1]);
  const line = `.venv/bin/mmprompt trace ${sweep} ${cell}`;
  open(`${sweep}: ${cell}`, lines(["seed", ...heads, "state", "run"], rows), el("pre", {}, line));
}

function showRun(run) {
  const known = data.runs[run];
  if (!known) return;
  const about = [["state", known.state], ...Object.entries(known.metrics)];
  about.push(["commit", (known.commit || "not known") + (known.dirty ? " with uncommitted changes" : "")]);
  about.push(["device", known.device], ["weights, sha256", known.weights], ["W&B record, in the store", known.record]);
  const attempts = known.attempts.map((one) => [one.number, one.work, one.host, one.began, one.published ? "the run's" : "",
    one.resumed_from === null ? "" : `resumed from ${one.resumed_from}`, one.error]);
  const all = Object.entries({ ...data.common, ...known.settings }).sort(([a], [b]) => a.localeCompare(b));
  open(`run ${run}, first in sweep ${data.sweeps[run]}`, pairs(about),
    el("h4", {}, "Settings in which runs differ"), pairs(Object.entries(known.settings)),
    el("details", {}, el("summary", {}, "All settings"), pairs(all)),
    el("h4", {}, "Attempts"), lines(["number", "work", "host", "began", "", "", "error"], attempts),
    el("h4", {}, "Again"), el("pre", {}, known.command || ""));
}

document.addEventListener("click", (event) => {
  const cell = event.target.closest("td[data-cell] button");
  if (cell) location.hash = `cell-${cell.closest("[data-sweep]").dataset.sweep}/${encodeURIComponent(cell.parentElement.dataset.cell)}`;
});

function follow() {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.startsWith("run-")) {
    const found = Object.keys(data.runs).filter((run) => run.startsWith(hash.slice(4)));
    if (found.length === 1) showRun(found[0]);
  } else if (hash.startsWith("cell-")) {
    const [, sweep, cell] = hash.match(/^cell-([^/]*)\/(.*)$/s) || [];
    if (sweep in data.sections) showCell(sweep, cell);
  }
}
window.addEventListener("hashchange", follow);

// Plots: lines or points with bars, on axes with round ticks.
const WIDE = 720, HIGH = 300, LEFT = 52, RIGHT = 14, TOP = 12, BELOW = 40;

function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * span; at++) found.push(+(at * step).toPrecision(12));
  return found;
}

function plot(box, xs, ys, xName, yName, paint, log = false) {
  const svg = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${yName} against ${xName}` });
  box.replaceChildren(svg);
  if (!xs.length) {
    svg.append(draw("text", { x: WIDE / 2, y: HIGH / 2, "text-anchor": "middle" }, "nothing to show"));
    return;
  }
  const f = log ? Math.log10 : (x) => x;
  let [x0, x1, y0, y1] = [Math.min(...xs.map(f)), Math.max(...xs.map(f)), Math.min(...ys), Math.max(...ys)];
  const [padX, padY] = [(x1 - x0 || 1) * 0.04, (y1 - y0 || 1) * 0.06];
  [x0, x1, y0, y1] = [x0 - padX, x1 + padX, y0 - padY, y1 + padY];
  const X = (x) => LEFT + ((f(x) - x0) / (x1 - x0)) * (WIDE - LEFT - RIGHT);
  const Y = (y) => HIGH - BELOW - ((y - y0) / (y1 - y0)) * (HIGH - BELOW - TOP);
  for (const y of ticks(y0, y1, 5)) {
    svg.append(draw("line", { x1: LEFT, x2: WIDE - RIGHT, y1: Y(y), y2: Y(y), stroke: "#e6e6e6" }));
    svg.append(draw("text", { x: LEFT - 6, y: Y(y) + 4, "text-anchor": "end" }, y.toLocaleString("en")));
  }
  const places = log && x1 - x0 > 1 ? ticks(x0, x1, 5).filter(Number.isInteger).map((x) => 10 ** x)
    : log ? ticks(10 ** x0, 10 ** x1, 5).filter((x) => x > 0) : ticks(x0, x1, 7);
  for (const x of places) {
    svg.append(draw("line", { x1: X(x), x2: X(x), y1: HIGH - BELOW, y2: HIGH - BELOW + 4, stroke: "#888" }));
    svg.append(draw("text", { x: X(x), y: HIGH - BELOW + 16, "text-anchor": "middle" }, x.toLocaleString("en", { maximumSignificantDigits: 3 })));
  }
  svg.append(draw("line", { x1: LEFT, x2: WIDE - RIGHT, y1: HIGH - BELOW, y2: HIGH - BELOW, stroke: "#888" }));
  svg.append(draw("text", { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 6, "text-anchor": "middle" }, xName));
  svg.append(draw("text", { x: 12, y: HIGH / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${HIGH / 2})` }, yName));
  paint(svg, X, Y);
}

// A legend whose entries hide and show rows.
function legend(box, entries, again) {
  const off = new Set();
  box.replaceChildren(...entries.map(([label, colour]) => {
    const made = el("button", { type: "button", "aria-pressed": "true", style: `--own: ${colour}`, onclick: () => {
      if (off.has(label)) off.delete(label); else off.add(label);
      made.setAttribute("aria-pressed", String(!off.has(label)));
      again();
    } }, label);
    return made;
  }));
  return off;
}

function unique(rows) {
  return [...new Map(rows.map((row) => [row.label, row.colour])).entries()];
}

function mean(values) {
  return values.reduce((sum, one) => sum + one, 0) / values.length;
}

for (const box of document.querySelectorAll(".curves")) {
  const own = data.sections[box.closest("section").dataset.sweep].curves;
  const [task, x, seeds, means] = ["task", "x", "seeds", "means"].map((name) => box.querySelector(`.${name}`));
  const factor = (line) => (x.value === "steps" ? 1 : line[x.value]);
  const paintAll = () => {
    const there = own.lines.filter((line) => line.task === task.value && !off.has(line.label) && factor(line) !== null);
    const xs = there.flatMap((line) => line.steps.map((step) => step * factor(line)));
    const ys = there.flatMap((line) => line.scores);
    plot(box.querySelector(".plot"), xs, ys, x.selectedOptions[0].text, "score on validation", (svg, X, Y) => {
      for (const [label, colour] of unique(there)) {
        const group = there.filter((line) => line.label === label);
        if (seeds.checked) {
          for (const line of group) {
            const points = line.steps.map((step, at) => `${X(step * factor(line))},${Y(line.scores[at])}`).join(" ");
            const made = draw("polyline", { points, fill: "none", stroke: colour, "stroke-width": 1, opacity: means.checked ? 0.35 : 0.9 });
            made.append(draw("title", {}, `${label}, seed ${line.seed}, run ${line.run}`));
            svg.append(made);
          }
        }
        if (means.checked) {
          const steps = [...new Set(group.flatMap((line) => line.steps))].sort((a, b) => a - b);
          const points = steps.map((step) => {
            const at = group.filter((line) => line.steps.includes(step));
            const scores = at.map((line) => line.scores[line.steps.indexOf(step)]);
            return [mean(at.map((line) => step * factor(line))), mean(scores), Math.min(...scores), Math.max(...scores)];
          });
          const upper = points.map(([at, , , high]) => `${X(at)},${Y(high)}`);
          const lower = points.map(([at, , low]) => `${X(at)},${Y(low)}`).reverse();
          svg.append(draw("polygon", { points: [...upper, ...lower].join(" "), fill: colour, opacity: 0.1 }));
          svg.append(draw("polyline", { points: points.map(([at, y]) => `${X(at)},${Y(y)}`).join(" "), fill: "none", stroke: colour, "stroke-width": 2 }));
        }
      }
    });
  };
  const off = legend(box.querySelector(".legend"), unique(own.lines), paintAll);
  for (const control of [task, x, seeds, means]) control.addEventListener("change", paintAll);
  paintAll();
}

const COSTS = {
  trainable_parameters: "trained parameters", seconds: "seconds of training, as recorded", device_hours: "device-hours, measured",
  seconds_per_update: "seconds per update, measured", seconds_per_100: "seconds per 100 answers, measured", peak_memory_mb: "peak memory in MB, measured",
};

for (const box of document.querySelectorAll(".costs")) {
  const own = data.sections[box.closest("section").dataset.sweep].costs;
  const [x, task] = ["x", "task"].map((name) => box.querySelector(`.${name}`));
  for (const [name, words] of Object.entries(COSTS)) {
    if (own.some((row) => name in row.takes)) x.append(el("option", { value: name }, words));
  }
  for (const name of new Set(own.map((row) => row.task))) task.append(el("option", { value: name }, name));
  const paintAll = () => {
    const there = own.filter((row) => row.task === task.value && x.value in row.takes && !off.has(row.label));
    const xs = there.map((row) => row.takes[x.value]);
    const ys = there.flatMap((row) => row.score.filter((one) => one !== null));
    const isLog = xs.length > 0 && Math.min(...xs) > 0 && Math.max(...xs) > 20 * Math.min(...xs);
    const metric = there.length ? there[0].metric : "score";
    plot(box.querySelector(".plot"), xs, ys, x.selectedOptions.length ? x.selectedOptions[0].text : "cost", metric, (svg, X, Y) => {
      for (const row of there) {
        const [value, low, high] = row.score;
        const at = X(row.takes[x.value]);
        if (low !== null) svg.append(draw("line", { x1: at, x2: at, y1: Y(low), y2: Y(high), stroke: row.colour, "stroke-width": 1.5 }));
        const dot = draw("circle", { cx: at, cy: Y(value), r: 5, fill: row.colour });
        dot.append(draw("title", {}, `${row.label}: ${shown(value)}, ${shown(row.takes[x.value])}`));
        svg.append(dot);
      }
    }, isLog);
  };
  const off = legend(box.querySelector(".legend"), unique(own), paintAll);
  for (const control of [x, task]) control.addEventListener("change", paintAll);
  paintAll();
}

follow();
