"use strict";
/* What the other scripts of the page share: its state, small builders, and questions to the service. */
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const count = (value) => value.toLocaleString("en");
const fixed = (value, digits = 3) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const state = { soup: null, specialist: null, files: [], walked: null, all: false };

/* Small builders. What comes from texts or the service becomes text nodes only. */
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

/* Questions to the service, and its errors. */
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
