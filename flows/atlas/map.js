/* The map. */
const dark = matchMedia("(prefers-color-scheme: dark)");
const reduced = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 52rem)");

function colours() {
  const values = data.tokens.map((_, i) => measured(i));
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  const quantile = (q) => (known.length ? known[Math.round(q * (known.length - 1))] : 0);
  // The weights of a specialist are mostly zero: they are shown from zero to the largest.
  const [least, most] = measures[state.measure].high ? [0, quantile(1)] : [quantile(0.02), quantile(0.98)];
  const mean = (domains) => {
    const present = domains.filter((i) => values[i] !== null && data.tokens[i]);
    const weight = total(present.map((i) => data.tokens[i]));
    return weight ? total(present.map((i) => values[i] * data.tokens[i])) / weight : least;
  };
  const clusters = data.clusters.map((_, c) => mean(members(c)));
  return { least, most: most > least ? most : least + 1, values: [least, ...clusters, ...values.map((v) => v ?? least)] };
}

/* The text colour of a tile: of two, the one with more contrast, which is at least 4.2 to 1. */
function inks({ least, most, values }) {
  const turn = dark.matches ? 0.55 : 0.78;
  return values.map((value) => ((value - least) / (most - least) < turn) === dark.matches ? "#ffffff" : "#0b1519");
}

/* A cluster's number, and as many of its words as fit into an average cluster. */
function name(cluster) {
  const room = Math.sqrt((at("map").clientWidth * at("map").clientHeight) / C) / 7;
  let text = String(cluster);
  for (const word of data.clusters[cluster].slice(0, 5)) {
    const longer = text + (text === String(cluster) ? " · " : " ") + word;
    if (longer.length > room) break;
    text = longer;
  }
  return text;
}

/* Only words, numbers and our own text go on the map: plotly interprets some HTML. */
function texts() {
  const inside = (i) => state.cluster === clusterOf(i);
  const enlarged = narrow.matches ? 2 : branching > 32 ? 3 : 6;
  // Laying out thousands of texts takes seconds, and none would fit.
  return ["", ...data.clusters.map(() => ""),
    ...data.words.map((list, i) => (inside(i) ? list.slice(0, enlarged) : K > MANY ? [] : list.slice(0, 3)).join("<br>"))];
}

function trace() {
  const scale = colours();
  const { least, most, values } = scale;
  const style = getComputedStyle(document.documentElement);
  const tokens = data.clusters.map((_, c) => total(members(c).map((i) => data.tokens[i])));
  const hover = (name, number) => `<b>${name}</b><br>${count(number)} tokens`;
  return {
    type: "treemap", branchvalues: "total", sort: true, level: state.cluster === null ? ALL : `c${state.cluster}`,
    ids: [ALL, ...data.clusters.map((_, c) => `c${c}`), ...data.tokens.map((_, i) => `d${i}`)],
    parents: ["", ...data.clusters.map(() => ALL), ...data.tokens.map((_, i) => `c${clusterOf(i)}`)],
    values: [allTokens, ...tokens, ...data.tokens],
    labels: ["all domains", ...data.clusters.map((_, c) => name(c)),
      ...data.tokens.map((_, i) => `domain ${i}`)],
    text: texts(), textinfo: "text", textposition: "middle center", textfont: { color: inks(scale) },
    hovertext: [
      hover("all domains", allTokens),
      ...data.clusters.map((list, c) => hover(`cluster ${c}: ${list.slice(0, 5).join(" ")}`, tokens[c])),
      ...data.words.map((list, i) =>
        `${hover(`domain ${i}`, data.tokens[i])}<br>${list.slice(0, 6).join(" ")}` +
        `<br>${measures[state.measure].name}: ${short(measured(i))}`),
    ],
    hoverinfo: "text",
    tiling: { packing: "squarify", pad: K > MANY ? 1 : 2 },
    pathbar: { visible: false },
    root: { color: style.getPropertyValue("--back") },
    marker: {
      colors: values, cmin: least, cmax: most, showscale: true,
      pad: { t: state.cluster === null ? 20 : 2, l: 2, r: 2, b: 2 },
      colorscale: dark.matches
        ? [[0, "#22323b"], [0.5, "#2f7891"], [1, "#9fe3f7"]]
        : [[0, "#e3edf1"], [0.5, "#7fb6c9"], [1, "#0d5a75"]],
      line: { width: 0.5, color: style.getPropertyValue("--back") },
      colorbar: {
        orientation: "h", x: 0.5, xanchor: "center", y: 0, yanchor: "top", ypad: 6, len: 0.7, thickness: 9,
        outlinewidth: 0, nticks: 5, tickfont: { size: 11 },
        title: { text: measures[state.measure].name, side: "top", font: { size: 12 } },
      },
    },
  };
}

let drawn = Promise.resolve();
function draw() {
  at("zoomed").hidden = state.cluster === null;
  const words = state.cluster === null ? [] : data.clusters[state.cluster].slice(0, 6);
  at("cluster").textContent = `Cluster ${state.cluster}: ${words.join(" ")}`;
  const style = getComputedStyle(document.documentElement);
  const layout = {
    margin: { l: 0, r: 0, t: state.cluster === null ? 0 : 42, b: 54 }, paper_bgcolor: "rgba(0,0,0,0)",
    uniformtext: { minsize: state.cluster === null || narrow.matches ? 11 : 13, mode: "hide" },
    font: { family: "system-ui, sans-serif", size: 13, color: style.getPropertyValue("--text") },
    hoverlabel: { font: { family: "system-ui, sans-serif", size: 13 }, align: "left" },
  };
  drawn = drawn.then(() => Plotly.react("map", [trace()], layout, { displayModeBar: false, responsive: true })).then(mark);
}

/* Fading and outlines are set on the drawn tiles: a new layout at each key would be slow. */
function mark() {
  const found = state.query ? new Set(matches()) : null;
  for (const slice of at("map").querySelectorAll(".slice")) {
    const id = slice.__data__.data.data.id;
    const domain = id[0] === "d" ? Number(id.slice(1)) : null;
    slice.classList.toggle("faded", found !== null && domain !== null && !found.has(domain));
    slice.classList.toggle("found", found !== null && domain !== null && found.has(domain));
    slice.classList.toggle("chosen", domain !== null && domain === state.domain);
  }
  const chosen = at("map").querySelector(".slice.chosen");
  if (chosen) chosen.parentNode.append(chosen); // above its neighbours, so that its outline is whole
}
