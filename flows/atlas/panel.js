/* The list. */
function matches() {
  const terms = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const domains = state.cluster === null ? data.tokens.map((_, i) => i) : members(state.cluster);
  return domains.filter((i) => terms.every((term) => haystack[i].includes(term) || term.replace(/^#/, "") === String(i)));
}

function list() {
  const key = sorts[state.sort].of;
  const domains = matches().sort((a, b) => (key(b) ?? -Infinity) - (key(a) ?? -Infinity) || a - b);
  at("found").textContent = state.query ? `${count(domains.length)} found`
    : state.cluster === null ? `${count(K)} domains` : `Cluster ${state.cluster}`;
  at("whole").hidden = !state.query && state.cluster === null;
  at("about").hidden = state.cluster === null;
  if (state.cluster !== null) {
    const inside = members(state.cluster);
    at("about").textContent = `${data.clusters[state.cluster].join(" ")} · ${count(inside.length)} domains, ` +
      `${count(total(inside.map((i) => data.tokens[i])))} tokens`;
  }
  at("items").replaceChildren(...domains.slice(0, state.shown).map(item));
  at("more").hidden = domains.length <= state.shown;
}

function item(i) {
  const figures = data.tokens[i]
    ? `${count(data.tokens[i])} tokens · ${count(data.passages[i])} passages · ` +
      `${measures[state.measure].label} ${short(measured(i))}`
    : "empty: 0 tokens";
  const node = button(undefined, () => choose(i));
  node.append(
    make("span", `#${i}`, { className: "number" }),
    make("span", data.words[i].slice(0, 5).join(" "), { className: "words" }),
    make("span", figures, { className: "figures" }),
  );
  const row = make("li");
  row.append(node);
  return row;
}

/* One domain. */
function domain(i) {
  const nav = make("nav");
  nav.append(button("← List", () => choose(null)), button("Previous", () => step(-1)), button("Next", () => step(1)));
  const title = make("h2", `Domain ${i}`, { tabIndex: -1 });
  const cluster = button(`cluster ${clusterOf(i)}: ${data.clusters[clusterOf(i)].slice(0, 4).join(" ")}`,
    () => { choose(null); enlarge(clusterOf(i)); }, "link");
  const parts = [nav, title, cluster];
  if (!data.tokens[i]) parts.push(make("p", "This domain is empty: no training passage is nearest to it."));
  if (data.words[i].length) parts.push(make("h3", "What sets it apart"), chips(data.words[i]));
  parts.push(make("h3", "Numbers"), numbers(i));
  if (data.specialists.length) {
    parts.push(make("h3", "Weight h of specialists (× the corpus's share)"), weights(i));
  }
  if (data.sources[i].length) {
    const of = data.sampled[i] < data.passages[i] ? `, of ${count(data.sampled[i])} sampled passages` : "";
    parts.push(make("h3", `Commonest sources${of}`), sources(i));
  }
  if (data.samples[i].length) {
    parts.push(make("h3", "Passages near its centre"), ...data.samples[i].map((text) => make("pre", text)));
  }
  at("domain").replaceChildren(...parts);
}

function chips(words) {
  const node = make("div", undefined, { className: "chips" });
  node.append(...words.map((word) => button(word, () => search(word))));
  return node;
}

function table(rows) {
  const node = make("dl");
  for (const [name, value] of rows) node.append(name instanceof Node ? name : make("dt", name), make("dd", value));
  return node;
}

function sources(i) {
  return table(data.sources[i].map(([name, share]) => {
    const term = make("dt");
    term.append(button(name, () => search(name), "link"));
    return [term, percent(share)];
  }));
}

function numbers(i) {
  const share = data.passages[i] / allPassages;
  const rows = [
    ["tokens", `${count(data.tokens[i])} (${percent(data.tokens[i] / allTokens)})`],
    ["passages", `${count(data.passages[i])} (${percent(share)})`],
    ["tokens per passage", short(data.passages[i] ? data.tokens[i] / data.passages[i] : null)],
    ["mean squared distance", short(data.distance[i])],
  ];
  return table(rows);
}

function weights(i) {
  const share = data.passages[i] / allPassages;
  const present = data.specialists.filter((one) => one.weights[i]).sort((a, b) => b.weights[i] - a.weights[i]);
  if (!present.length) return make("p", "No specialist shown here draws on this domain.");
  return table(present.map(({ name, weights }) =>
    [name, short(weights[i]) + (share ? ` (${short(weights[i] / share)} ×)` : "")]));
}
