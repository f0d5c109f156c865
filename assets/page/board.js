// A long video while it is being looked through: pictures of what happens in it, each in its part of the strip, as they
// are found. Until then a part shows, dim, the picture at its beginning.

import { clock, fill, h, number, sentenceOf, t } from "./dom.js";
import { address } from "./session.js";

const PARTS = 12; // of the video, a picture each
const SOON = 500, LATER = 1500; // ms between two questions to the server; later, when it takes long
const PATIENCE = 10_000; // ms

/** Those of the long videos attached; `ask` is called with the second of a picture that is pressed. */
export function boards(ask) {
  const element = h("div.qv-boards");
  const shown = new Map(); // by file id
  return {
    element,
    show(files) {
      const wanted = files.filter((file) => file.looked_through);
      for (const [id, each] of shown) if (!wanted.some((file) => file.id === id)) { each.close(); shown.delete(id); }
      for (const file of wanted) {
        if (!shown.has(file.id)) shown.set(file.id, board(file, ask));
        const own = shown.get(file.id).element;
        if (own.parentElement !== element) element.append(own);
      }
      element.hidden = !wanted.length;
    },
    draw() { for (const each of shown.values()) each.draw(); },
  };
}

function board(stored, ask) {
  const words = h("div.qv-board-words", { role: "status" });
  const strip = h("div.qv-board-strip", { role: "group", label_t: "board" });
  const element = h("div.qv-board", {}, strip, words);
  const cells = Array.from({ length: PARTS }, () => h("div.qv-board-cell"));
  const began = performance.now();
  let known = { state: "making", progress: 0, segments: [] };
  let timer = 0, closed = false;
  fill(strip, cells);
  put(0, Math.min(0.1, stored.duration / 2), true);
  look();

  /** The picture of a part; dim where nothing new was found in it, or not yet. */
  function put(part, second, isNew) {
    const cell = cells[part];
    const words = t("board_ask", { at: clock(Math.floor(second)) });
    const key = `${second} ${isNew} ${words}`;
    if (cell.dataset.key === key) return; // a picture is not loaded anew each time the server is asked
    cell.dataset.key = key;
    fill(cell, h("button.qv-board-moment" + (isNew ? "" : ".qv-same"), { type: "button", title: words, "aria-label": words, onclick: () => ask(Math.floor(second)) },
      h("img", { src: address(`thumb/${stored.id}/${second.toFixed(3)}.webp?width=160`), alt: "", decoding: "async", onerror: (event) => event.target.classList.add("qv-broken") })));
  }

  function draw() {
    const length = stored.duration / PARTS;
    let last = null;
    const seen = known.segments.at(-1)?.[1] || 0;
    for (let part = 0; part < PARTS; part++) {
      const starts = known.segments.filter(([, , second]) => second >= part * length && second < (part + 1) * length);
      const most = starts.reduce((best, each) => (best && best[3] >= each[3] ? best : each), null); // what changed most
      if (most) last = most;
      if (most) put(part, most[2], true);
      else if (last && seen >= (part + 1) * length - 0.5) put(part, last[2], false);
      else if (part && known.state === "making") put(part, part * length, false);
    }
    const n = number(known.segments.length);
    fill(words, known.state === "making" ? h("span.qv-pulse") : null, h("span", {},
      known.state === "making" ? t("board_making", { percent: Math.floor(100 * known.progress) })
        : known.state === "ready" ? t("board_ready", { n }) : sentenceOf({ message: known.sentence || t("board_failed") })));
  }

  async function look() {
    try {
      const response = await fetch(address(`storyboard/${stored.id}`));
      if (closed) return;
      if (!response.ok) { element.hidden = true; return; }
      known = await response.json();
      if (closed) return;
      draw();
    } catch { /* the server is away: asked again */ }
    if (!closed && known.state === "making") timer = setTimeout(look, performance.now() - began < PATIENCE ? SOON : LATER);
  }

  return { element, draw, close() { closed = true; clearTimeout(timer); element.remove(); } };
}
