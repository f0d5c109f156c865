// What is said in a video as a list below the player: the lines of the subtitles shown, searched and followed.

import { clock, fill, h, icon, number, t } from "./dom.js";

const MOST = 300; // lines in the list at once
const PAUSE = 150; // ms

/** `seek` goes to a second. Returns {element, watch, follow}; `watch` takes a track element of the player. */
export function saidList(video, seek) {
  const title = h("span");
  const box = h("input.qv-input", { type: "search", placeholder_t: "said_search", label_t: "said_search", oninput: () => { clearTimeout(box.timer); box.timer = setTimeout(draw, PAUSE); } });
  const list = h("ol");
  const element = h("details.qv-chapters.qv-said", { hidden: true, ontoggle: draw }, h("summary", {}, icon("right", 13), title), box, list);
  let lines = [];
  let rows = [];

  video.textTracks.addEventListener("change", read);

  /** The lines of the track that is shown; where none is, those of before stay. */
  function read() {
    const shown = [...video.textTracks].find((track) => track.mode === "showing" && track.cues?.length);
    if (!shown) return;
    lines = [...shown.cues].map((cue) => ({ start: cue.startTime, end: cue.endTime, text: cue.getCueAsHTML().textContent.replace(/\s+/g, " ") }));
    element.hidden = false;
    title.textContent = t("said", { n: number(lines.length) });
    draw();
  }

  function draw() {
    if (!element.open) return;
    const query = box.value.trim();
    const found = query ? lines.filter((line) => line.text.toLowerCase().includes(query.toLowerCase())) : lines;
    rows = found.slice(0, MOST).map((line) => ({ ...line, element: h("button.qv-chapter", { type: "button", onclick: () => seek(line.start) }, h("span.qv-stamp", {}, clock(line.start)), h("span", {}, marked(line.text, query))) }));
    fill(list, rows.map((row) => h("li", {}, row.element)),
      found.length > MOST && h("li.qv-dim", {}, t("said_more", { n: number(found.length - MOST) })),
      !found.length && h("li.qv-dim", {}, t("no_match", { query })));
  }

  return {
    element,
    watch(track) { track.addEventListener("load", read); },
    follow(second) { for (const row of rows) row.element.classList.toggle("qv-shown", row.start <= second + 0.05 && second < row.end); },
  };
}

/** The words searched for, marked. */
function marked(text, query) {
  const at = query ? text.toLowerCase().indexOf(query.toLowerCase()) : -1;
  return at < 0 ? text : [text.slice(0, at), h("mark", {}, text.slice(at, at + query.length)), text.slice(at + query.length)];
}
