// Switches → drawings. Names from the data become text nodes, never HTML.
"use strict";

const $ = id => document.getElementById(id);
const MOST = 60;          // domains with a colour at a time
const ROWS = 12;          // in the box beside the pointer
const FEW = 8;            // domains that need neither a search nor grey ones

function make(tag, {text, ...attributes} = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.append(text);
  made.append(...children);
  return made;
}

function sample(dash, colour = "currentColor") {   // a bit of a line, for a legend
  const NS = "http://www.w3.org/2000/svg";   // a name; nothing is fetched from it
  const svg = document.createElementNS(NS, "svg"), line = document.createElementNS(NS, "line");
  for (const [key, value] of Object.entries({width: 26, height: 8, "aria-hidden": true})) svg.setAttribute(key, value);
  const style = {x1: 0, x2: 26, y1: 4, y2: 4, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash.join(" ")};
  for (const [key, value] of Object.entries(style)) line.setAttribute(key, value);
  svg.append(line);
  return svg;
}

async function open() {
  const report = JSON.parse($("data").textContent);
  const packed = await unpack($("packed").textContent.trim());
  const many = report.domains.length > FEW, form = $("controls");
  const state = {
    x: report.x, smooth: true, marks: true, others: many,
    domains: new Set(report.shown), runs: new Set(report.runs.keys()), zoom: null,
  };
  const shared = {end: 1};   // what charts tell the page
  let plots = [], active = null, zooming = false;

  // --- numbers ---------------------------------------------------------------------------------

  let number = 0;
  const told = report.runs.flatMap((run, r) => run.marks.map(mark => ({
    ...mark, run: r, number: mark.kind === "resume" || mark.kind === "event" ? 0 : ++number,
  })));
  for (const run of report.runs) {
    for (const curves of Object.values(run.curves)) {
      for (const part of ["mean", "low", "high"]) if (curves[part]) curves[part] = matrix(packed, curves[part]);
      curves.row = new Map(curves.of.map((place, row) => [place, row]));
      curves.at = Object.fromEntries(Object.entries(curves.x).map(([axis, xs]) => [axis, xs.map(x => x + run.start[axis])]));
    }
  }

  function curve(r, key, place, style) {
    const curves = report.runs[r].curves[key], row = curves?.row.get(place);
    if (row === undefined) return null;
    const x = curves.at[state.x], mean = curves.mean(row), low = curves.low?.(row) ?? mean, high = curves.high?.(row) ?? mean;
    const smooth = state.smooth && style.smooth !== false;
    return {
      x, mean, low, high, run: r, axes: curves.x, line: smooth ? smoothed(mean) : mean,
      thin: style.smooth !== false && (low !== mean || smooth && mean.length > SMOOTH_FROM),
      broken: (curves.broken ?? []).filter(([of]) => of === row).map(([, i]) => x[i]),
      step: x.length > 1 ? 2 * (x[x.length - 1] - x[0]) / (x.length - 1) : Infinity,
      dash: report.compare ? DASHES[r % DASHES.length] : [], ...style,
    };
  }

  const runs = () => [...report.runs.keys()].filter(r => state.runs.has(r));
  const named = (name, r) => report.runs.length > 1 ? `${name} · ${report.runs[r].name}` : name;

  function curvesOf(key, colours) {
    const found = [];
    for (const r of runs()) {
      for (const place of report.domains.keys()) {
        if (!state.domains.has(place)) continue;
        const {name} = report.domains[place], colour = report.domains[place][colours.theme];
        const style = {domain: place, name: named(name, r), colour, smooth: key !== "valid"};
        found.push(curve(r, key, place, style));
        if (key === "shares") found.push(curve(r, "plan", place, {...style, name: `${style.name}, plan`, dash: [3, 4], wide: 1.2, smooth: false}));
      }
      const total = report.runs[r].curves.host?.names.indexOf("lm_loss") ?? -1;
      if (key === "train" && total >= 0) {
        found.push(curve(r, "host", total, {name: named("lm loss, of all", r), colour: colours.ink, dash: [1, 4], wide: 1.6, domain: -1}));
      }
    }
    return found.filter(Boolean);
  }

  function greyOf(key) {
    if (!state.others || key === "shares") return [];
    return runs().flatMap(r => [...report.domains.keys()]
      .filter(place => !state.domains.has(place))
      .map(place => curve(r, key, place, {smooth: false})).filter(Boolean));
  }

  function hostOf(name, colours) {
    return runs().map(r => {
      const at = report.runs[r].curves.host?.names.indexOf(name) ?? -1;
      return at < 0 ? null : curve(r, "host", at, {name: named(name.replaceAll("_", " "), r), colour: colours.accent, smooth: name === "learning_rate" ? false : undefined});
    }).filter(Boolean);
  }

  // --- drawing ---------------------------------------------------------------------------------

  function palette() {
    const style = getComputedStyle(document.documentElement), of = name => style.getPropertyValue(`--${name}`).trim();
    return {
      theme: of("theme"), ink: of("ink"), faint: of("faint"), line: of("line"), paper: of("paper"), grey: of("grey"),
      accent: of("accent"), info: of("faint"), warning: of("warning"), error: of("error"),
    };
  }

  function chartOf(key, colours) {
    const loss = key === "train" || key === "valid", own = loss || ["shares", "weights", "experts"].includes(key);
    return {
      key, colours, small: !own, loss,
      curves: own ? curvesOf(key, colours) : hostOf(key, colours),
      others: own ? greyOf(key) : [],
      points: key === "valid" ? true : undefined,
      floor: loss || key === "learning_rate" || key === "shares" || key === "experts" ? 0 : null,
      tick: key === "shares" ? value => `${+(100 * value).toPrecision(3)}%` : key === "learning_rate" ? value => value ? value.toExponential() : "0" : short,
      right: loss ? value => short(+Math.exp(value).toPrecision(3)) : null,
      marks: state.marks ? marksOf() : [],
    };
  }

  function marksOf() {
    const boundaries = report.compare ? [] : runs().filter(r => report.runs[r].begin[state.x] > 0 || report.runs.length > 1)
      .map(r => ({kind: "run", text: report.runs[r].name, at: report.runs[r].begin[state.x]}));
    return [...boundaries, ...told.filter(mark => state.runs.has(mark.run))
      .map(mark => ({...mark, at: mark.x[state.x] + report.runs[mark.run].start[state.x]}))];
  }

  function redraw() {
    const colours = palette();
    for (const plot of plots) plot.destroy();
    shared.end = Math.max(1, ...runs().map(r => report.runs[r].end[state.x]));
    plots = [];
    for (const box of document.querySelectorAll("[data-chart]")) {
      const chart = chartOf(box.dataset.chart, colours);
      plots.push(draw(box, chart, shared));
      describe(box, chart);
    }
    if (state.zoom) zoomTo(state.zoom);
    legend(colours);
  }

  function describe(box, chart) {   // what a screen reader says of a canvas
    const ends = chart.curves.slice(0, ROWS).map(one => `${one.name} ${digits(one.line[one.line.length - 1])}`);
    box.querySelector("canvas").setAttribute("role", "img");
    box.querySelector("canvas").setAttribute("aria-label", `${chart.curves.length} curves; at the end: ${ends.join(", ")}`);
  }

  function legend(colours) {
    const parts = [...state.domains].sort((a, b) => a - b).map(place => {
      const domain = report.domains[place];
      return make("span", {}, sample([], domain[colours.theme]), domain.name);
    });
    if (report.compare) parts.push(...runs().map(r => make("span", {}, sample(DASHES[r % DASHES.length]), report.runs[r].name)));
    $("legend").replaceChildren(...parts);
  }

  function zoomTo([min, max]) {
    zooming = true;
    for (const plot of plots) plot.setScale("x", {min, max});
    queueMicrotask(() => { zooming = false; });
  }

  shared.zoom = u => {
    if (zooming || !plots.includes(u)) return;
    const {min, max} = u.scales.x, whole = min <= 0 && max >= shared.end;
    state.zoom = whole ? null : [min, max];
    $("whole").hidden = whole;
    zoomTo([min, max]);
  };
  shared.whole = () => { state.zoom = null; $("whole").hidden = true; zoomTo([0, shared.end]); };
  $("whole").addEventListener("click", shared.whole);

  // --- the box beside the pointer --------------------------------------------------------------

  const tip = $("tip");
  shared.leave = () => { tip.hidden = true; };
  shared.hover = (u, chart, box) => {
    if (box !== active || u.cursor.left < 0) return;
    const {left, top} = u.cursor, at = u.posToVal(left, "x");
    const rows = readings(u, chart, at, top).slice(0, innerWidth < 560 ? ROWS / 2 : ROWS);
    const near = chart.marks.filter(mark => Math.abs(u.valToPos(mark.at, "x") - left) < 8);
    if (!rows.length && !near.length) { tip.hidden = true; return; }
    const body = rows.map(({curve, i}) => make("tr", {}, make("td", {}, sample(curve.dash, curve.colour)),
      make("td", {text: curve.name}), make("td", {text: reading(chart, curve, i)}), make("td", {text: around(chart, curve, i)})));
    const where = rows.length ? make("p", {text: `iteration ${rows[0].curve.axes.iterations[rows[0].i].toLocaleString("en")} · ${short(rows[0].curve.axes.tokens[rows[0].i])} tokens`}) : "";
    tip.replaceChildren(where, make("table", {}, ...body), ...near.map(mark => make("p", {text: (mark.number ? `▲ ${mark.number}: ` : "┊ ") + mark.text})));
    tip.hidden = false;
    const place = u.over.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const x = place.left + left + 18 + size.width < innerWidth ? place.left + left + 18 : Math.max(4, place.left + left - size.width - 18);
    tip.style.left = `${x + scrollX}px`;
    tip.style.top = `${Math.max(4, Math.min(place.top + top - size.height / 2, innerHeight - size.height - 4)) + scrollY}px`;
  };

  function reading(chart, curve, i) {
    const value = curve.mean[i];
    if (chart.key === "shares") return `${(100 * value).toFixed(2)}%`;
    return chart.loss ? `${digits(value)}  ppl ${digits(Math.exp(value))}` : digits(value);
  }

  function around(chart, curve, i) {
    return curve.low[i] === curve.high[i] || chart.key === "shares" ? "" : `${digits(curve.low[i])} to ${digits(curve.high[i])}`;
  }

  for (const box of document.querySelectorAll("[data-chart]")) {
    box.addEventListener("pointerenter", () => { active = box; });
    box.addEventListener("blur", shared.leave);
    box.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      const u = plots.find(plot => box.contains(plot.root));
      if (!step || !u) return;
      event.preventDefault();
      active = box;
      const begin = u.cursor.left < 0 ? (step > 0 ? 0 : u.over.clientWidth) : u.cursor.left;
      const left = Math.min(Math.max(begin + step * u.over.clientWidth / 100, 0), u.over.clientWidth);
      u.setCursor({left, top: u.over.clientHeight / 2});
      $("said").textContent = tip.innerText;
    });
  }

  // --- switches --------------------------------------------------------------------------------

  const chips = report.domains.map((domain, place) => {
    const box = make("input", {type: "checkbox"});
    box.checked = state.domains.has(place);
    box.addEventListener("change", () => { toggle(place, box.checked); redraw(); });
    const chip = make("label", {class: "chip", style: `--light:${domain.light};--dark:${domain.dark}`}, box,
      make("span", {}, make("span", {class: "dot"}), domain.name));
    return {chip, box, name: domain.name.toLowerCase()};
  });
  function toggle(place, on) {
    if (on && state.domains.size < MOST) state.domains.add(place); else state.domains.delete(place);
    chips[place].box.checked = state.domains.has(place);
    count();
  }
  function count() {
    const full = state.domains.size >= MOST ? `; no more than ${MOST} at a time` : "";
    $("count").textContent = `${state.domains.size} of ${report.domains.length} in colour${full}`;
  }
  $("domains").append(...chips.map(({chip}) => chip));
  $("search").hidden = !many;
  $("domains").classList.toggle("many", many);
  $("others").hidden = !many;
  form.elements.x.value = state.x;
  form.elements.others.checked = state.others;
  const rows = document.querySelectorAll("tr[data-domain]");
  const find = () => $("find").value.trim().toLowerCase();
  $("find").addEventListener("input", () => {
    const found = chips.map(({chip, name}) => !(chip.hidden = !name.includes(find())));
    for (const row of rows) row.hidden = !found[row.dataset.domain];
  });
  $("all").addEventListener("click", () => {
    chips.forEach(({name}, place) => { if (name.includes(find())) toggle(place, true); });
    redraw();
  });
  $("none").addEventListener("click", () => { chips.forEach((_, place) => toggle(place, false)); redraw(); });
  if (report.runs.length > 1) {
    $("runs").append(...report.runs.map((run, r) => {
      const box = make("input", {type: "checkbox"});
      box.checked = true;
      box.addEventListener("change", () => { state.runs[box.checked ? "add" : "delete"](r); redraw(); });
      return make("label", {class: "chip"}, box, make("span", {}, sample(report.compare ? DASHES[r % DASHES.length] : []), run.name));
    }));
  }
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("change", event => {
    const {name, value, checked} = event.target;
    if (!name) return;
    if (name === "x") { state.x = value; state.zoom = null; $("whole").hidden = true; } else state[name] = checked;
    redraw();
  });
  count();

  // --- themes, print, sizes --------------------------------------------------------------------

  const dark = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const name = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; };
  $("theme").addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); redraw(); });
  dark.addEventListener("change", () => { name(); redraw(); });
  let kept;
  addEventListener("beforeprint", () => {
    kept = root.dataset.theme;
    root.dataset.theme = "light";
    document.body.classList.add("printing");
    redraw();
  });
  addEventListener("afterprint", () => {
    kept ? root.dataset.theme = kept : delete root.dataset.theme;
    document.body.classList.remove("printing");
    redraw();
  });
  let width = innerWidth, waiting;
  addEventListener("resize", () => {
    if (width === innerWidth) return;   // a phone's bar that hides
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 100);
  });
  if (location.hash.startsWith("#alarm")) unfold();
  addEventListener("hashchange", unfold);
  function unfold() { const one = document.querySelector(`details${location.hash}`); if (one) one.open = true; }

  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  drawExperts(report, packed);
  for (const part of ["controls", "theme"]) $(part).hidden = false;
  name();
  redraw();
  requestAnimationFrame(() => requestAnimationFrame(() => { root.dataset.ready = Math.round(performance.now()); }));
}

// A click on the head of a column sorts by it; once more, the other way round.
function sortable(table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = cell => {
    const found = parseFloat(cell.textContent.replace(/[,(]/g, ""));
    return Number.isNaN(found) ? -Infinity : found;
  };
  heads.forEach((head, at) => {
    if (head.querySelector(".unseen")) return;
    const button = make("button", {type: "button", text: head.textContent});
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows], sign = down ? -1 : 1;
      rows.sort((a, b) => at ? sign * (value(a.cells[at]) - value(b.cells[at])) : -sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent));
      body.append(...rows);
    });
  });
}

open().catch(error => {
  $("problem").textContent = `The curves cannot be drawn: ${error.message}. A browser of 2023 or later can.`;
  $("problem").hidden = false;
  document.documentElement.dataset.failed = error.stack ?? String(error);
});
