"use strict";
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

/* The page as it opens. */
async function start() {
  if (location.search) history.replaceState(null, "", "/");  // takes the token out of the address and the history
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
    at("summary").textContent = `${count(experts)} experts · ${count(domains.x.length)} domains · ${count(parameters)} parameters per model · ` +
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
