"use strict";
/* The map of the domains. */
const WIDTH = 640, HEIGHT = 420, EDGE = 44, LABELS = 12;
const narrow = matchMedia("(max-width: 52rem)");
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
/* Names for the heaviest domains, each placed where it covers no other name. */
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
