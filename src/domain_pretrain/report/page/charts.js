// Curves on a canvas: uPlot draws lines and axes; what it has no notion of is drawn here.
"use strict";

const DASHES = [[], [8, 5], [2, 4], [9, 4, 2, 4]];   // of runs that are compared
const SMOOTH_FROM = 60;                              // windows, as in the picture
const NEAR = 14;                                     // pixels from the pointer
const SI = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

function short(value) {
  const [size, sign] = SI.find(([size]) => Math.abs(value) >= size) ?? [1, ""];
  const scaled = value / size;
  return (Math.abs(scaled) >= 0.001 || !scaled ? +scaled.toPrecision(4) : scaled.toExponential(2)) + sign;
}

function digits(value) {
  const size = Math.abs(value);
  if (!size) return "0";
  if (size >= 1e5 || size < 1e-3) return size >= 1e5 ? short(value) : value.toExponential(2);
  return size >= 100 ? value.toFixed(1) : value.toFixed(size >= 10 ? 2 : 3);
}

// Centred mean of the finite numbers, narrower at both ends; as moving_average of curves.py.
function smoothed(numbers) {
  const n = numbers.length;
  if (n <= SMOOTH_FROM) return numbers;
  const window = Math.floor(Math.floor(n / 20) / 2), sums = new Float64Array(n + 1), counts = new Float64Array(n + 1);
  for (let i = 0; i < n; i++) {
    const there = !Number.isNaN(numbers[i]);
    sums[i + 1] = sums[i] + (there ? numbers[i] : 0);
    counts[i + 1] = counts[i] + there;
  }
  return numbers.map((_, i) => {
    const reach = Math.min(window, i, n - 1 - i), low = i - reach, high = i + reach + 1;
    return (sums[high] - sums[low]) / (counts[high] - counts[low]);
  });
}

// Curves of several runs on one axis: all places in order, and each curve's numbers at its own.
function align(curves) {
  const axes = [...new Set(curves.map(curve => curve.x))];
  const xs = [...new Set(axes.flat())].sort((a, b) => a - b);
  const place = new Map(xs.map((x, i) => [x, i]));
  const data = curves.map(curve => {
    const row = new Array(xs.length).fill(null);
    curve.x.forEach((x, i) => { if (!Number.isNaN(curve.line[i])) row[place.get(x)] = curve.line[i]; });
    return row;
  });
  return [xs, ...data];
}

// Least and greatest number of curves between two places; the thin lines count, not their averages.
function extent(curves, from, to) {
  let low = Infinity, high = -Infinity;
  for (const {x, low: lows, high: highs} of curves) {
    for (let i = 0; i < x.length; i++) {
      if (x[i] < from || x[i] > to) continue;
      if (lows[i] < low) low = lows[i];
      if (highs[i] > high) high = highs[i];
    }
  }
  return [low, high];
}

// Through the lowest and the highest window of every place: no spike is lost.
function zigzag(u, curve, colour, width) {
  const {ctx} = u, {x, low, high} = curve;
  ctx.beginPath();
  let drawn = false;
  for (let i = 0; i < x.length; i++) {
    if (Number.isNaN(low[i])) continue;
    const at = Math.round(u.valToPos(x[i], "x", true));
    const bottom = u.valToPos(low[i], "y", true);
    drawn ? ctx.lineTo(at, bottom) : ctx.moveTo(at, bottom);
    if (high[i] !== low[i]) ctx.lineTo(at, u.valToPos(high[i], "y", true));
    drawn = true;
  }
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.stroke();
}

function inside(u, draw) {
  const {ctx} = u, {left, top, width, height} = u.bbox;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
  draw(ctx, left, top, width, height);
  ctx.restore();
}

function thin(u, chart, ratio) {
  inside(u, ctx => {
    ctx.lineJoin = "round";
    ctx.globalAlpha = 0.7;
    for (const curve of chart.others) zigzag(u, curve, chart.colours.grey, ratio * 0.8);
    ctx.globalAlpha = 0.38;
    for (const curve of chart.curves) if (curve.thin) zigzag(u, curve, curve.colour, ratio);
  });
}

function crosses(u, chart, ratio) {
  inside(u, (ctx, left, top, width, height) => {
    const size = 3.5 * ratio, y = top + height - 2.5 * size;
    ctx.lineWidth = 1.5 * ratio;
    ctx.setLineDash([]);   // not that of the last curve
    for (const curve of chart.curves) {
      if (curve.domain === -1) continue;   // all domains together: that of one of them says it
      ctx.strokeStyle = curve.colour;
      ctx.beginPath();
      for (const at of curve.broken) {
        const x = u.valToPos(at, "x", true);
        ctx.moveTo(x - size, y - size); ctx.lineTo(x + size, y + size);
        ctx.moveTo(x - size, y + size); ctx.lineTo(x + size, y - size);
      }
      ctx.stroke();
    }
  });
}

// Where a mark stands: on the curve of its domain where that is drawn, else at the top.
function height(u, chart, mark) {
  const curve = chart.curves.find(one => one.run === mark.run && one.domain === mark.domain && mark.domain != null);
  if (!curve) return null;
  const next = curve.x.findIndex((x, i) => x >= mark.at && !Number.isNaN(curve.high[i]));
  if (next < 0) return null;
  return u.valToPos(mark.kind === "warning" || mark.kind === "error" ? curve.high[next] : curve.line[next], "y", true);
}

function marks(u, chart, ratio) {
  inside(u, (ctx, left, top, width, bottom) => {
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.lineWidth = ratio;
    let labelled = -Infinity;
    for (const mark of chart.marks) {
      const x = u.valToPos(mark.at, "x", true);
      if (x < left - 1 || x > left + width + 1) continue;
      if (mark.number) continue;
      ctx.strokeStyle = ctx.fillStyle = chart.colours.faint;
      ctx.setLineDash(mark.kind === "run" ? [5 * ratio, 4 * ratio] : [ratio, 3 * ratio]);
      ctx.beginPath(); ctx.moveTo(x, top); ctx.lineTo(x, top + bottom); ctx.stroke();
      const label = mark.kind === "resume" ? "" : mark.text.split(":")[0].slice(0, 40);
      if (!label || x < labelled) continue;
      ctx.textAlign = x + ctx.measureText(label).width > left + width ? "right" : "left";
      ctx.fillText(label, x + (ctx.textAlign === "left" ? 4 : -4) * ratio, top + bottom - 5 * ratio);
      labelled = x + ctx.measureText(label).width + 12 * ratio;
    }
    ctx.setLineDash([]);
    ctx.textAlign = "center";
    let near = -Infinity;
    for (const mark of chart.marks) {
      if (!mark.number) continue;
      const x = u.valToPos(mark.at, "x", true), size = 5 * ratio;
      const on = height(u, chart, mark);
      const y = on === null ? top + 24 * ratio : Math.max(top + 24 * ratio, on - 4 * ratio);
      ctx.strokeStyle = ctx.fillStyle = chart.colours[mark.kind];
      if (on === null) {
        ctx.globalAlpha = 0.5;
        ctx.beginPath(); ctx.moveTo(x, y); ctx.lineTo(x, top + bottom); ctx.stroke();
        ctx.globalAlpha = 1;
      }
      ctx.beginPath();
      ctx.moveTo(x, y); ctx.lineTo(x - size, y - 1.6 * size); ctx.lineTo(x + size, y - 1.6 * size);
      ctx.fill();
      if (x - near > 14 * ratio) { ctx.fillText(mark.number, x, y - 2.4 * size); near = x; }
    }
  });
}

// One chart in `box`. `chart`: title, curves, others, marks, colours, and how numbers are written.
function draw(box, chart, shared) {
  const ratio = devicePixelRatio, {colours} = chart;
  const narrow = box.clientWidth < 520;
  const axis = {stroke: colours.ink, grid: {stroke: colours.line, width: 1}, ticks: {show: false}, font: "12px system-ui, sans-serif"};
  const tall = chart.small ? (narrow ? 190 : 210) : (narrow ? 300 : 380);
  const bounds = (from, to) => {
    const [low, high] = extent([...chart.curves, ...chart.others], from, to);
    if (low > high) return [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [chart.floor != null && low - room < chart.floor ? chart.floor : low - room, high + room];
  };
  const data = align(chart.curves), [xs] = data;
  // To begin with, from 0 to the end of the run; later, as it is asked for.
  const whole = (u, min, max) => min === xs[0] && max === xs[xs.length - 1] || min === null ? [0, shared.end] : [min, max];
  const wide = (u, values) => values ? 14 + 7 * Math.max(...values.map(value => String(value).length)) : 40;
  const axes = [
    {...axis, grid: {show: false}, size: 28, values: (u, splits) => splits.map(short), space: narrow ? 60 : 80},
    {...axis, size: wide, values: (u, splits) => splits.map(chart.tick)},
  ];
  if (chart.right) axes.push({...axis, scale: "y", side: 1, grid: {show: false}, size: wide, values: (u, splits) => splits.map(chart.right)});
  const u = new uPlot({
    width: box.clientWidth, height: tall, axes,
    padding: [8, chart.right ? 0 : 12, 0, 0],
    legend: {show: false},
    scales: {x: {time: false, range: whole}, y: {range: () => bounds(-Infinity, Infinity)}},
    series: [{}, ...chart.curves.map(curve => ({
      stroke: curve.colour, width: chart.points ? 1.2 : curve.wide ?? 1.8, dash: curve.dash, spanGaps: true,
      points: {show: chart.points ?? curve.x.length < 2, size: 6, fill: colours.paper, stroke: curve.colour},
    }))],
    cursor: {
      drag: {x: true, y: false, setScale: true},
      points: {show: false},
      sync: {key: "curves", filters: {pub: type => type === "mousemove" || type === "mouseleave"}},
      focus: {prox: -1},
      bind: {dblclick: () => () => { shared.whole(); return null; }},
    },
    hooks: {
      drawAxes: [u => thin(u, chart, ratio)],
      draw: [u => { crosses(u, chart, ratio); marks(u, chart, ratio); }],
      setScale: [(u, key) => {
        if (key !== "x") return;
        const [min, max] = bounds(u.scales.x.min, u.scales.x.max);
        const {y} = u.scales;
        if (y.min !== min || y.max !== max) {
          queueMicrotask(() => u.setScale("y", {min, max}));   // what is asked for in a hook is lost
        }
        shared.zoom(u);
      }],
      setCursor: [u => shared.hover(u, chart, box)],
    },
  }, data, box);
  u.over.addEventListener("mouseleave", shared.leave);
  return u;
}

// What is near a place: a row for each curve, those next to the pointer first.
function readings(u, chart, at, y) {
  const rows = [];
  const far = Math.abs(u.posToVal(NEAR, "x") - u.posToVal(0, "x"));
  for (const curve of chart.curves) {
    let best = -1;
    for (let i = 0; i < curve.x.length; i++) {
      if (Number.isNaN(curve.low[i])) continue;
      if (best < 0 || Math.abs(curve.x[i] - at) < Math.abs(curve.x[best] - at)) best = i;
    }
    if (best < 0 || Math.abs(curve.x[best] - at) > Math.max(far, curve.step)) continue;
    rows.push({curve, i: best, away: Math.abs(u.valToPos(curve.line[best], "y") - y)});
  }
  return rows.sort((a, b) => a.away - b.away);
}
