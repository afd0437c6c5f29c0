"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#1f77b4", "#d9480f", "#2b8a3e", "#9c36b5", "#c2255c", "#0c8599", "#846358", "#6c757d", "#b8860b", "#4263eb", "#5c940d", "#e8590c"];
const DASHES = ["solid", "dot", "dash", "dashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star"];

function style(number) {
  const color = COLOURS[number % COLOURS.length], round = Math.floor(number / COLOURS.length);
  return {
    line: { color, dash: DASHES[round % DASHES.length], width: 2 },
    // Another symbol with the same colour: where there are no lines, nothing else tells them apart.
    marker: { color, symbol: SYMBOLS[(number + round) % SYMBOLS.length], size: 8 },
  };
}

function layout(x, y, lines, entries = DATA.rows.length) {
  const colours = getComputedStyle(document.documentElement);
  const of = name => colours.getPropertyValue(name).trim();
  const narrow = window.innerWidth < 640, legend = 20 * entries;
  const axis = { gridcolor: of("--line"), zeroline: false, automargin: true, linecolor: of("--line") };
  return {
    xaxis: { ...axis, title: { text: x } },
    yaxis: { ...axis, title: { text: y } },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: of("--text"), size: narrow ? 11 : 13 },
    height: narrow ? 320 + legend : 80 + 34 * Math.max(lines, entries * 0.7, 8),
    margin: { l: 55, r: 10, t: 10, b: narrow ? 60 + legend : 55 },
    legend: narrow ? { yref: "container", y: 0, yanchor: "bottom", x: 0, maxheight: legend + 20 } : { x: 1.01, y: 1 },
    hovermode: "closest",
  };
}

// More lines than colours cannot be told apart. Variants, as soup:d1, then wait for a click on their name.
function shownAtFirst(row) {
  return DATA.rows.length > COLOURS.length && row.method.includes(":") ? "legendonly" : true;
}

function curve(row, number, by) {
  const points = row.curve.filter(point => point.loss);
  return {
    type: "scatter", mode: "lines+markers", name: row.method, ...style(number), visible: shownAtFirst(row),
    x: points.map(point => point[by]), y: points.map(point => point.loss.mean),
    error_y: { type: "data", array: points.map(point => point.loss.sd || 0), visible: points.some(point => point.loss.sd), thickness: 1 },
  };
}

function labelOf(set) {
  return `${set.name} (${set.kind})`;
}

function lossPerSet(row, number) {
  const sets = DATA.sets.filter(set => row.by_set[set.name]);
  return {
    type: "scatter", mode: "markers", name: row.method, marker: style(number).marker, visible: shownAtFirst(row),
    x: sets.map(set => row.by_set[set.name].mean),
    y: sets.map(labelOf),
    error_x: { type: "data", array: sets.map(set => row.by_set[set.name].sd || 0), visible: sets.some(set => row.by_set[set.name].sd), thickness: 1 },
  };
}

function byNumber(found) {
  const curves = Object.entries(found.curves).map(([name, points], number) => ({
    type: "scatter", mode: "lines+markers", name, ...style(number),
    x: points.map(point => point.at), y: points.map(point => point.mean),
    error_y: { type: "data", array: points.map(point => point.sd || 0), visible: points.some(point => point.sd), thickness: 1 },
  }));
  const all = curves.flatMap(one => one.x), ends = [Math.min(...all), Math.max(...all)];
  return curves.concat(Object.entries(found.flat).map(([name, loss], number) => ({
    type: "scatter", mode: "lines", name, x: ends, y: [loss.mean, loss.mean],
    line: { ...style(curves.length + number).line, dash: "dot" },
  })));
}

function aboveMean(losses) {
  const known = losses.filter(loss => loss !== null), mean = known.reduce((sum, loss) => sum + loss, 0) / known.length;
  return losses.map(loss => loss === null ? null : loss - mean);
}

function mixtures(surface) {
  const predicted = surface.predicted[surface.ranked[0].method];
  return surface.sets.map((name, number) => ({
    type: "scatter", mode: "markers", name, marker: style(number).marker,
    x: aboveMean(predicted[number]), y: aboveMean(surface.trained[number]),
    error_y: { type: "data", array: (surface.trained_sd || [])[number] || [], visible: Boolean(surface.trained_sd), thickness: 1 },
    text: surface.mixtures.map(mixture => `mixture ${mixture}`),
  }));
}

function tuned(row, number) {
  return {
    type: "scatter", mode: "lines+markers", name: row.method, ...style(number),
    x: row.tuned.map(point => point.tokens.toLocaleString("en")), y: row.tuned.map(point => point.loss.mean),
    error_y: { type: "data", array: row.tuned.map(point => point.loss.sd || 0), visible: row.tuned.some(point => point.loss.sd), thickness: 1 },
  };
}

function drawFineTuning(settings) {
  if (!document.getElementById("fine-tuning")) return;
  const curves = DATA.rows.map(tuned).filter(line => line.x.length);
  const axes = layout("tokens of each set (not to scale)", "loss (nats per token)", 8, curves.length);
  axes.xaxis.type = "category";
  Plotly.react("fine-tuning", curves, axes, settings);
}

// The values themselves, as text, where they are small; otherwise 1, 2 and 5 of each power of ten.
function ticks(at) {
  const low = Math.min(...at), high = Math.max(...at), round = [];
  if (low <= 0 || high < 10_000) return [...new Set(at)].map(value => [value, String(value)]);
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) round.push(power, 2 * power, 5 * power);
  const short = new Intl.NumberFormat("en", { notation: "compact" });
  return round.map(value => [value, short.format(value)]);
}

function drawByNumber(name, found, settings) {
  const curves = byNumber(found), at = Object.values(found.curves).flat().map(point => point.at);
  const axes = layout(found.number, "loss (nats per token)", 8, curves.length), shown = ticks(at);
  if (Math.min(...at) > 0) axes.xaxis.type = "log";
  axes.xaxis.tickvals = shown.map(tick => tick[0]);
  axes.xaxis.ticktext = shown.map(tick => tick[1]);
  Plotly.react(`by-${name}`, curves, axes, settings);
}

// A logarithmic axis: CRISP's points are those of a training for each set, far from the others'.
function drawCurves(by, title, settings) {
  const curves = DATA.rows.map((row, number) => curve(row, number, by)), axes = layout(title, "loss (nats per token)", 8);
  axes.xaxis.type = "log";
  // 1, 2 and 5 of each power of ten.
  axes.xaxis.dtick = "D2";
  Plotly.react(by, curves, axes, settings);
}

function draw() {
  const settings = { displayModeBar: false, responsive: true };
  const perSetLayout = layout("loss (nats per token)", "", DATA.sets.length);
  perSetLayout.yaxis.autorange = "reversed";
  if (window.innerWidth < 640) {
    perSetLayout.yaxis.tickvals = DATA.sets.map(labelOf);
    perSetLayout.yaxis.ticktext = DATA.sets.map(set => set.name.length > 16 ? `${set.name.slice(0, 15)}…` : set.name);
  }
  for (const [name, found] of Object.entries(DATA.by_number)) drawByNumber(name, found, settings);
  if (DATA.surface) Plotly.react("surface", mixtures(DATA.surface), layout(`loss of the ${DATA.surface.ranked[0].method}'s model, above its mean (nats per token)`, "of the trained model", 8, DATA.surface.sets.length), settings);
  drawCurves("tokens", "tokens", settings);
  drawCurves("seconds", "seconds of training", settings);
  drawFineTuning(settings);
  Plotly.react("sets", DATA.rows.map(lossPerSet), perSetLayout, settings).then(() => { document.body.dataset.ready = "yes"; });
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
