"use strict";
/* Domain weights and losses. */
const ROWS = 8;
function weights() {
  const rows = state.specialist.domains, shown = state.all ? rows : rows.slice(0, ROWS);
  const passages = state.specialist.texts.count;
  at("h-caption").textContent = `Domain weights h: ${count(rows.length)} of ${count(state.soup.domains.x.length)} domains, from ` +
    `${count(passages)} ${passages === 1 ? "passage" : "passages"} (entropy ${fixed(state.specialist.texts.entropy)} nats)`;
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
  const found = state.specialist.losses;
  at("verdict").className = "";
  if (!found) {
    at("losses").replaceChildren();
    at("verdict").textContent = state.specialist.no_losses_because;
    return;
  }
  const longest = Math.max(found.made, found.generic_instance), gain = found.generic_instance - found.made;
  at("losses").replaceChildren(bar("This specialist", found.made, longest, true), bar("Generic instance", found.generic_instance, longest, false));
  at("verdict").className = gain > 0 ? "good" : "bad";
  const windows = `${count(found.windows)} ${found.windows === 1 ? "window" : "windows"}`;
  const sure = found.gain_interval ? ` In 90 % of the resamples the gain is ${fixed(found.gain_interval[0])} to ${fixed(found.gain_interval[1])}.` : "";
  at("verdict").replaceChildren(
    make("strong", gain > 0 ? `${fixed(gain)} nats per token better` : `${fixed(-gain)} nats per token worse`),
    ` than the generic instance, on ${windows} of your text that were held out (less is better).${sure}`,
  );
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
