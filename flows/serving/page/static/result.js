"use strict";
/* Domain weights and losses. */
const ROWS = 8;
function weights() {
  const rows = state.specialist.domains, shown = state.all ? rows : rows.slice(0, ROWS);
  const passages = state.specialist.texts.count;
  const { share, steps } = state.specialist;
  at("h-caption").textContent = `Domain weights h of your texts: ${count(rows.length)} of ${count(state.soup.domains.x.length)} domains, from ` +
    `${count(passages)} ${passages === 1 ? "passage" : "passages"} (entropy ${fixed(state.specialist.texts.entropy)} nats)` +
    (share === null ? "" : `. The model takes ${share} of them, the rest is the generic mixture.`) +
    (steps ? ` ${steps} steps of gradient descent moved its coefficients from there.` : "");
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
    at("copied").textContent = "The browser forbids it: open “Recipe” and copy it there.";
  }
}
