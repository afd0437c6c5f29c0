"use strict";
/* The texts. */
const paragraphs = () => at("texts").value.split(/\n[ \t\r]*\n/).filter((text) => text.trim());
const given = () => [...paragraphs(), ...state.files.map((file) => file.text)];

function counted() {
  const texts = given(), characters = texts.reduce((sum, text) => sum + text.length, 0);
  at("count").textContent = texts.length
    ? `${count(texts.length)} ${texts.length === 1 ? "text" : "texts"}, ${count(characters)} characters` +
      (texts.length < 10 ? ". More texts make the choice surer; from 10 passages on, some are held out to measure on." : "")
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
    // Before the list is asked for: its answer must not take the focus from where the reader went meanwhile.
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
