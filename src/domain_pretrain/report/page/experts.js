// The load of experts as a map: domains down, experts across, one layer at a time.
"use strict";

function drawExperts(report, packed) {
  for (const figure of document.querySelectorAll("[data-experts]")) {
    const {layers, names, of, load} = report.runs[figure.dataset.experts].experts;
    const row = matrix(packed, load), select = figure.querySelector("select");
    const draw = () => {
      const rows = names.map((_, at) => row(select.value * names.length + at));
      const most = Math.max(1, ...rows.map(one => Math.max(...one)));
      figure.querySelector(".scale").textContent = `no colour: none; full: ${most.toFixed(1)} times the even part`;
      const body = rows.map((one, at) => {
        const {light, dark} = report.domains[of[at]] ?? {};
        const head = make("th", {scope: "row"}, make("span", {class: "domain"},
          make("span", {class: "dot", style: `--light:${light};--dark:${dark}`}), names[at]));
        return make("tr", {}, head, ...Array.from(one, (times, expert) => make("td", {
          // The root: one expert that gets all must not leave the others without colour.
          style: `--part:${(100 * Math.sqrt(times / most)).toFixed(1)}%`,
          title: `${names[at]}, layer ${layers[select.value]}, expert ${expert}: ${times.toFixed(2)} times its even part`,
        })));
      });
      figure.querySelector(".map").replaceChildren(make("table", {}, make("tbody", {}, ...body)));
    };
    select.addEventListener("change", draw);
    draw();
    figure.hidden = false;
  }
}
