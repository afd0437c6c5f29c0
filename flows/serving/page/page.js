"use strict";
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 640, HEIGHT = 420, EDGE = 44, ROWS = 8, LABELS = 12;
const narrow = matchMedia("(max-width: 52rem)");
const count = (value) => value.toLocaleString("en");
const fixed = (value, digits = 3) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const state = { soup: null, specialist: null, files: [], walked: null, all: false };

/* Small builders: what comes from texts or the service only ever becomes text nodes. */
function make(tag, text, attributes = {}) {
  const node = Object.assign(document.createElement(tag), attributes);
  if (text !== undefined) node.textContent = text;
  return node;
}
function draw(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/* The service, and what it says when it cannot. */
async function ask(path, body) {
  const options = body === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The service does not answer. Is `soe serve` still running?");
  }
  const found = await response.json().catch(() => null);
  if (response.ok && found !== null) return found;
  if (response.status === 401) throw new Error("The token is no longer right. Open the address that `soe serve` printed.");
  throw new Error(found?.error?.message ?? `The service answered ${response.status} ${response.statusText}.`);
}
function say(id, error) {
  at(id).textContent = error ? error.message : "";
  at(id).hidden = !error;
}

/* The texts. */
const paragraphs = () => at("texts").value.split(/\n[ \t\r]*\n/).filter((text) => text.trim());
const given = () => [...paragraphs(), ...state.files.map((file) => file.text)];

function counted() {
  const texts = given(), characters = texts.reduce((sum, text) => sum + text.length, 0);
  at("count").textContent = texts.length
    ? `${count(texts.length)} ${texts.length === 1 ? "text" : "texts"}, ${count(characters)} characters` +
      (texts.length < 10 ? ". More of them make a surer choice; from 10 passages on some are kept apart to measure on." : "")
    : "";
}
async function addFiles(files) {
  const problems = [];
  for (const file of files) {
    if (file.size > state.soup.limits.body_bytes) { problems.push(`${file.name} is too large.`); continue; }
    const text = await file.text();
    if (/[\0\ufffd]/.test(text)) problems.push(`${file.name} is not a text file in UTF-8.`);
    else if (!text.trim()) problems.push(`${file.name} is empty.`);
    else state.files.push({ name: file.name, text });
  }
  say("make-error", problems.length ? new Error(problems.join(" ")) : null);
  listFiles();
}
function listFiles() {
  at("file-list").replaceChildren(...state.files.map((file, i) => {
    const row = make("li"), node = make("button", `${file.name} ✕`, { type: "button", title: `leave ${file.name} out` });
    node.addEventListener("click", () => { state.files.splice(i, 1); listFiles(); });
    row.append(node);
    return row;
  }));
  counted();
}
async function makeOne(event) {
  event.preventDefault();
  const texts = given();
  if (!texts.length) { say("make-error", new Error("There is no text yet: paste some above, or add a file.")); return; }
  say("make-error", null);
  at("make-button").disabled = true;
  at("progress").hidden = false;
  const began = Date.now();
  const tick = () => { at("elapsed").textContent = `placing the texts and putting the model together, ${Math.round((Date.now() - began) / 1000)} s`; };
  tick();
  const timer = setInterval(tick, 500);
  try {
    show(await ask("/api/specialists", { texts }));
    // At once: the list's answer must not take the focus from where the reader went meanwhile.
    at("map-title").focus({ preventScroll: true });
    at("map-title").scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    await listMade();
  } catch (error) {
    say("make-error", error);
  } finally {
    clearInterval(timer);
    at("progress").hidden = true;
    at("make-button").disabled = false;
  }
}

/* The specialists that were made. */
async function listMade() {
  const found = await ask("/api/specialists");
  at("none").hidden = found.total > 0;
  at("made").replaceChildren(...found.specialists.map((one) => {
    const row = make("li"), node = make("button", undefined, { type: "button" });
    const texts = one.texts === null ? "" : `${count(one.texts)} ${one.texts === 1 ? "passage" : "passages"} · `;
    const words = one.words.length ? one.words.slice(0, 4).join(" ") : `domain ${one.domain}`;
    node.append(make("span", one.id, { className: "id" }),
      make("span", `${texts}${new Date(one.created * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })} · ${words}`, { className: "about" }));
    if (one.id === state.specialist?.id) node.setAttribute("aria-current", "true");
    node.addEventListener("click", async () => {
      try { show(await ask(`/api/specialists/${one.id}`)); await listMade(); } catch (error) { say("make-error", error); }
    });
    row.append(node);
    return row;
  }));
}
function show(specialist) {
  if (state.specialist?.id !== specialist.id) {
    at("written").hidden = true;
    say("write-error", null);
    at("copied").textContent = "";
  }
  Object.assign(state, { specialist, walked: null, all: false });
  at("result").hidden = at("h-box").hidden = false;
  at("where").classList.add("with-h");
  at("map-title").textContent = "Where your texts fall";
  at("warnings").replaceChildren(...specialist.warnings.map((text) => make("li", text)));
  at("warnings").hidden = !specialist.warnings.length;
  map();
  weights();
  losses();
  at("download").href = `/api/specialists/${specialist.id}.zip`;
  at("model-name").textContent = specialist.id;
  at("recipe").textContent = JSON.stringify(specialist.recipe, null, 1);
}

/* The map. */
const weightOf = (domain) => state.specialist?.domains.find((row) => row.domain === domain)?.weight ?? 0;
const place = (x, y) => [EDGE + x * (WIDTH - 2 * EDGE), HEIGHT - EDGE - y * (HEIGHT - 2 * EDGE)];

function map() {
  const { x, y, share, words } = state.soup.domains;
  const most = Math.max(...share, 1e-9), biggest = Math.min(30, Math.max(5, 260 / Math.sqrt(x.length)));
  const heaviest = Math.max(...(state.specialist?.domains.map((row) => row.weight) ?? []), 1e-9);
  const bubbles = [], known = [];
  x.forEach((_, domain) => {
    if (x[domain] === null) return;
    const [cx, cy] = place(x[domain], y[domain]), weight = weightOf(domain);
    const r = weight ? 6 + 22 * Math.sqrt(weight / heaviest) : 2 + biggest * Math.sqrt(share[domain] / most);
    const node = draw("circle", { cx, cy, r, class: weight ? "weight" : "", "data-domain": domain });
    node.addEventListener("pointerenter", () => point(domain));
    node.addEventListener("click", () => point(domain));
    bubbles.push([weight, node]);
    known.push({ domain, cx, cy, r, weight });
  });
  bubbles.sort((a, b) => a[0] - b[0]);
  known.sort((a, b) => b.weight - a.weight || share[b.domain] - share[a.domain]);
  const parts = [...bubbles.map(([, node]) => node), ...labels(known, words)];
  if (state.specialist?.position) {
    const [cx, cy] = place(...state.specialist.position);
    parts.push(draw("path", { class: "centre", d: `M${cx - 8} ${cy}h16M${cx} ${cy - 8}v16` }));
  }
  at("map").replaceChildren(...parts);
  at("map-said").textContent = state.specialist
    ? "The domains your texts fall into are highlighted, the cross is their middle. Point at a bubble, or walk with the arrow keys."
    : "Each bubble is a domain of the corpus; near ones are alike. Point at one, or walk with the arrow keys.";
}
/* Names of the heaviest domains, and of others where there are few, each where no other name is. */
function labels(known, words) {
  const size = narrow.matches ? 20 : 13, shown = known.slice(0, LABELS), taken = [], found = [];
  const meets = (box, one) => Math.abs(one.x - box.x) < one.half + box.half && Math.abs(one.y - box.y) < one.high + box.high;
  for (const { domain, cx, cy, r, weight } of shown) {
    if (!words[domain].length) continue;
    const text = words[domain].slice(0, weight ? 2 : 1).join(" "), half = text.length * size * 0.29;
    const x = Math.min(WIDTH - half - 4, Math.max(half + 4, cx));
    const boxes = [cy - r - size * 0.7, cy + r + size * 0.8].map((y) => ({ x, y, half, high: size * 0.55 }))
      .filter((box) => box.y > size && box.y < HEIGHT - size && !taken.some((one) => meets(box, one)));
    const covers = (box) => shown.some((one) =>
      one.domain !== domain && meets(box, { x: one.cx, y: one.cy, half: one.r, high: one.r }));
    const box = boxes.find((one) => !covers(one)) ?? boxes[0];
    if (!box) continue;
    taken.push(box);
    found.push(draw("text", { x, y: box.y + size * 0.33, "text-anchor": "middle", class: weight ? "" : "faint" }, text));
  }
  return found;
}
function point(domain) {
  const { words, share } = state.soup.domains, weight = weightOf(domain);
  for (const node of at("map").querySelectorAll("circle")) node.classList.toggle("said", Number(node.dataset.domain) === domain);
  at("map-said").textContent = `Domain ${domain}${words[domain].length ? ": " + words[domain].join(" ") : ""}. ` +
    `${fixed(100 * share[domain], 1)} % of the corpus${weight ? `, h ${fixed(weight)}` : ""}.`;
}
function walk(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const known = state.soup.domains.x.map((x, domain) => [x, domain]).filter(([x]) => x !== null).map(([, domain]) => domain);
  const order = known.sort((a, b) => weightOf(b) - weightOf(a) || a - b);
  state.walked = state.walked === null ? (by > 0 ? 0 : order.length - 1) : (state.walked + by + order.length) % order.length;
  point(order[state.walked]);
}

/* Domain weights and losses. */
function weights() {
  const rows = state.specialist.domains, shown = state.all ? rows : rows.slice(0, ROWS);
  const passages = state.specialist.texts.count;
  const { share } = state.specialist;
  at("h-caption").textContent = `Domain weights h of your texts: ${count(rows.length)} of ${count(state.soup.domains.x.length)} domains, from ` +
    `${count(passages)} ${passages === 1 ? "passage" : "passages"} (entropy ${fixed(state.specialist.texts.entropy)} nats)` +
    (share === null ? "" : `. The model takes ${share} of them, the rest is the generic mixture.`);
  at("h").replaceChildren(...shown.map((row) => {
    const line = make("tr"), about = make("td", row.words.length ? row.words.join(" ") : `domain ${row.domain}`);
    if (row.share > 0) about.append(make("span", `domain ${row.domain} · ${fixed(row.weight / row.share, 1)} × its share of the corpus`, { className: "times" }));
    line.append(make("td", fixed(row.weight)), about);
    line.addEventListener("pointerenter", () => point(row.domain));
    return line;
  }));
  at("h-more").hidden = shown.length === rows.length;
}
function bar(name, loss, longest, mine) {
  const node = make("div", undefined, { className: mine ? "bar this" : "bar" }), track = make("div", undefined, { className: "track" });
  const fill = make("div", undefined, { className: "fill" });
  fill.style.width = `${(100 * loss) / longest}%`;
  track.append(fill);
  node.append(make("span", name), track, make("span", fixed(loss), { className: "value" }));
  return node;
}
function losses() {
  const { losses: found, gain, gains, no_losses_because: why } = state.specialist;
  at("verdict").className = gains ? "good" : "bad";
  at("verdict").replaceChildren(make("strong", gain), ...(why ? [` ${why}`] : []));
  if (!found) { at("losses").replaceChildren(); return; }
  const longest = Math.max(found.made, found.generic_instance);
  at("losses").replaceChildren(bar("This specialist", found.made, longest, true), bar("Generic instance", found.generic_instance, longest, false));
}

/* Writing. */
function written(id, prompt, completion) {
  at(id).replaceChildren(make("span", prompt, { className: "given" }), make("span", completion.text));
  if (completion.finish_reason === "stop") at(id).append(make("span", " ∎", { className: "given", title: "end of the text" }));
}
async function write(event) {
  event.preventDefault();
  say("write-error", null);
  at("write-button").disabled = true;
  at("writing").textContent = "Writing…";
  const { id } = state.specialist, prompt = at("prompt").value;
  try {
    const found = await ask("/api/generate",
      { id, prompt, max_tokens: Number(at("tokens").value), temperature: Number(at("temperature").value) });
    if (state.specialist.id === id) {
      written("by-specialist", prompt, found.specialist);
      written("by-generic", prompt, found.generic);
      at("written").hidden = false;
    }
  } catch (error) {
    say("write-error", error);
  } finally {
    at("writing").textContent = "";
    at("write-button").disabled = false;
  }
}
async function copy() {
  try {
    await navigator.clipboard.writeText(at("recipe").textContent);
    at("copied").textContent = "Copied.";
  } catch {
    at("copied").textContent = "The browser does not let it be copied: open “Recipe” and copy it there.";
  }
}

async function start() {
  if (location.search) history.replaceState(null, "", "/");  // the token stays out of the address and the history
  const drop = at("drop");
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => { event.preventDefault(); addFiles(event.dataTransfer.files); });
  at("files").addEventListener("change", async () => { await addFiles(at("files").files); at("files").value = ""; });
  at("texts").addEventListener("input", counted);
  at("make").addEventListener("submit", makeOne);
  at("write").addEventListener("submit", write);
  at("copy").addEventListener("click", copy);
  at("map").addEventListener("keydown", walk);
  narrow.addEventListener("change", () => { if (state.soup) map(); });
  at("h-more").addEventListener("click", () => { state.all = true; weights(); });
  try {
    state.soup = await ask("/api/soup");
    const { name, experts, parameters, positions, domains } = state.soup;
    document.title = `Specialists of ${name}`;
    at("soup").textContent = name;
    at("summary").textContent = `${count(experts)} experts · ${count(domains.x.length)} domains · ${count(parameters)} parameters a model · ` +
      `${count(positions)} positions`;
    at("tokens").max = String(Math.min(positions - 1, state.soup.limits.max_tokens));
    at("tokens").value = String(Math.min(48, Math.floor(positions / 2)));
    map();
    await listMade();
  } catch (error) {
    say("make-error", error);
  }
  document.body.dataset.ready = "yes";
}
start();
