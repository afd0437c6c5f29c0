/* What the reader can do. */
function choose(i, { focus = true } = {}) {
  const before = state.domain;
  state.domain = i;
  at("list").hidden = i !== null;
  at("domain").hidden = i === null;
  history.replaceState(null, "", i === null ? location.pathname : `#${i}`);
  if (i === null) {
    list();
    if (before !== null && focus) at("panel").scrollTop = state.scroll;
  } else {
    if (before === null) state.scroll = at("panel").scrollTop;
    domain(i);
    at("panel").scrollTop = 0;
    if (narrow.matches) at("panel").scrollIntoView({ behavior: reduced.matches ? "auto" : "smooth", block: "start" });
    if (focus) at("domain").querySelector("h2").focus({ preventScroll: true });
  }
  mark();
}

function enlarge(cluster) {
  state.cluster = cluster;
  state.shown = SHOWN;
  list();
  draw();
}

function search(text) {
  at("search").value = text;
  const zoomed = state.cluster !== null;
  Object.assign(state, { query: text.trim(), cluster: null, shown: SHOWN });
  choose(null, { focus: false });
  at("panel").scrollTop = 0;
  if (zoomed) draw();
}

/* The next domain by number; during a search, the next one of the list. */
function step(by) {
  const order = matches();
  if (!order.length) return;
  const here = order.indexOf(state.domain);
  choose(order[here < 0 ? (by > 0 ? 0 : order.length - 1) : (here + by + order.length) % order.length],
    { focus: document.activeElement !== at("map") });
}

function clicked(event) {
  const id = event.points[0].id;
  const box = at("map").getBoundingClientRect();
  const tiny = state.cluster === null && (box.width * box.height) / K < SMALL_TILE;
  if (id === ALL) enlarge(null);
  else if (id[0] === "d" && !tiny) choose(Number(id.slice(1)), { focus: false });
  else {
    const cluster = id[0] === "c" ? Number(id.slice(1)) : clusterOf(Number(id.slice(1)));
    choose(null, { focus: false });
    enlarge(cluster === state.cluster ? null : cluster);
  }
  return false; // the map is enlarged by us, with the labels that then fit
}

function keyed(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (event.target === at("map") && event.key in steps) step(steps[event.key]);
  else if (event.target === at("map") && event.key === "Enter" && state.domain !== null) enlarge(clusterOf(state.domain));
  else if (event.key === "Escape" && state.domain !== null) choose(null);
  else if (event.key === "Escape" && state.cluster !== null) enlarge(null);
  else return;
  event.preventDefault();
}

function start() {
  document.title = `Domain atlas: ${data.store}`;
  at("store").textContent = data.store;
  const empty = data.tokens.filter((tokens) => !tokens).length;
  at("summary").textContent = `${count(K)} domains in ${count(C)} clusters · ${count(allTokens)} tokens · ` +
    `${count(allPassages)} passages · ${count(empty)} empty · ${data.digest.slice(0, 12)}`;
  options(at("measure"), measures.map((measure) => measure.name), state.measure);
  options(at("sort"), sorts.map((sort) => sort.name), state.sort);
  at("tools").addEventListener("submit", (event) => event.preventDefault());
  at("search").addEventListener("input", () => search(at("search").value));
  at("measure").addEventListener("change", () => {
    state.measure = Number(at("measure").value);
    list();
    draw();
  });
  at("sort").addEventListener("change", () => { state.sort = Number(at("sort").value); list(); });
  at("more").addEventListener("click", () => { state.shown += SHOWN; list(); });
  at("back").addEventListener("click", () => enlarge(null));
  at("whole").addEventListener("click", () => search(""));
  document.addEventListener("keydown", keyed);
  dark.addEventListener("change", draw);
  list();
  setTimeout(first); // the list is shown before the map is laid out
}

function first() {
  draw();
  drawn = drawn.then(() => {
    at("map").on("plotly_treemapclick", clicked);
    at("map").on("plotly_afterplot", mark);
    const named = location.hash.match(/^#(\d+)$/);
    if (named && Number(named[1]) < K) choose(Number(named[1]));
    document.body.dataset.ready = "yes";
  });
}
start();
