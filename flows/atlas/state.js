"use strict";
// The data are columns: data.tokens[i] is of domain i, which lies in cluster Math.floor(i / branching).
const data = JSON.parse(document.getElementById("data").textContent);
const K = data.tokens.length, C = data.clusters.length, branching = K / C;
const ALL = "all", SHOWN = 150, MANY = 1024, SMALL_TILE = 120;
const at = (id) => document.getElementById(id);
const clusterOf = (domain) => Math.floor(domain / branching);
const members = (cluster) => Array.from({ length: branching }, (_, i) => cluster * branching + i);
const total = (column) => column.reduce((sum, value) => sum + value, 0);
const allTokens = total(data.tokens), allPassages = total(data.passages);
const count = (value) => value.toLocaleString("en");
const short = (value) =>
  value === null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 3, useGrouping: true });
const percent = (share) => `${(100 * share).toLocaleString("en", { maximumSignificantDigits: 3 })} %`;
const haystack = data.words.map((words, i) =>
  [words.join(" "), ...data.sources[i].map(([name]) => name)].join("\n").toLowerCase());

// What a domain can be coloured and sorted by; null where an empty domain has no such number.
const measures = [
  ...data.specialists.map((s) => ({
    name: `weight h of ${s.name}`, label: "h", of: (i) => s.weights[i] || 0, high: true,
  })),
  { name: "mean squared distance", label: "distance²", of: (i) => data.distance[i] },
  { name: "tokens per passage", label: "tokens/passage",
    of: (i) => (data.passages[i] ? data.tokens[i] / data.passages[i] : null) },
  { name: "share of the commonest source", label: "one source",
    of: (i) => (data.sources[i].length ? data.sources[i][0][1] : null) },
];
const measured = (i) => measures[state.measure].of(i);
const sorts = [
  { name: "tokens", of: (i) => data.tokens[i] },
  { name: "colour", of: measured },
  { name: "number", of: (i) => -i },
];
const state = {
  query: "", cluster: null, domain: null, measure: 0, sort: data.specialists.length ? 1 : 0, shown: SHOWN, scroll: 0,
};

/* Small builders. Text from the data becomes text nodes only. */
function make(tag, text, attributes = {}) {
  const node = Object.assign(document.createElement(tag), attributes);
  if (text !== undefined) node.textContent = text;
  return node;
}
function button(text, action, className = "") {
  const node = make("button", text, { type: "button", className });
  node.addEventListener("click", action);
  return node;
}
function options(select, names, chosen) {
  names.forEach((name, i) => select.append(make("option", name, { value: i, selected: i === chosen })));
}
