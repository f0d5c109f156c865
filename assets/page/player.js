// The video: our own <video> below one address, a timeline with what was cited, and the frames the model saw.

import { clock, fill, h, iconButton, t } from "./dom.js";
import { filmstrip } from "./filmstrip.js";
import { savingTools } from "./saving.js";
import { address } from "./session.js";
import { tracks } from "./tracks.js";

const EPSILON = 0.001; // seconds: a seek to a frame's exact time may land on the frame before

export function player(file) {
  const video = h("video", { controls: true, playsInline: true, preload: "metadata", tabindex: 0, id: "qv-video" });
  const still = h("img.qv-still", { alt: "", hidden: true });
  const making = h("div.qv-making", { hidden: true, role: "status" });
  const overlay = h("div.qv-video-marks");
  const screen = h("div.qv-screen", {}, video, still, overlay);
  if (file.width && file.height) screen.style.aspectRatio = `${file.width} / ${file.height}`;
  const head = h("span.qv-playhead");
  const marksBox = h("div.qv-marks");
  const line = h("div.qv-line", { onclick: (event) => { const place = line.getBoundingClientRect(); seek(file.start + ((event.clientX - place.left) / place.width) * file.duration); } }, h("span.qv-rail"), marksBox, head);
  const words = tracks(file, video, seek);
  line.insertBefore(words.ticks, marksBox);
  const seenBox = h("div.qv-seen");
  line.insertBefore(seenBox, marksBox);
  const saving = savingTools(file, { now, span: () => cited && cited.e !== undefined ? [cited.t, cited.e] : null });
  const steps = h("div.qv-steps", {}, iconButton("left", "frame_before", () => step("before"), { "aria-keyshortcuts": "," }), iconButton("right", "frame_after", () => step("after"), { "aria-keyshortcuts": "." }), saving.button);
  const times = h("div.qv-times", {}, h("span", {}, clock(file.start)), steps, h("span", {}, clock(file.start + file.duration)));
  const strip = filmstrip(file, { seek, now, chose: shade });
  const element = h("div.qv-player", {}, screen, making, line, times, saving.line, words.element, strip.element);

  let target = null; // seconds wanted before the player knows its file
  let playable = false;
  let stillAt = null; // the second of the picture shown instead of the film
  let timer = 0;
  let closed = false;
  let marked = null;
  let cited = null; // the link opened last

  video.addEventListener("loadedmetadata", apply);
  video.addEventListener("timeupdate", follow);
  video.addEventListener("seeking", follow);
  for (const name of ["loadeddata", "seeked"]) video.addEventListener(name, () => { if (playable && target === null && !video.seeking) still.hidden = true; });
  video.addEventListener("error", () => { if (video.src) { playable = false; say(t("no_play")); showStill(target ?? Math.max(file.start, video.currentTime)); } });
  document.addEventListener("keydown", keys, true);
  refresh(file);
  load();

  async function load() {
    let known;
    try { known = await (await fetch(address(`media/${file.id}/state`))).json(); }
    catch { known = null; }
    if (closed) return;
    if (known && (known.play === "as_is" || known.play === "ready")) {
      playable = true;
      making.hidden = true;
      video.hidden = false;
      video.src = address(known.url || `media/${file.id}`);
    } else if (known && known.play === "making") {
      say(t("making", { percent: Math.floor(100 * (known.progress || 0)) }), known.progress);
      showStill(target ?? file.start);
      timer = setTimeout(load, 1000);
    } else {
      say(t("no_play"));
      showStill(target ?? file.start);
    }
  }

  function say(words, share) {
    making.hidden = false;
    video.hidden = true;
    fill(making, h("span", {}, words), share !== undefined && h("span.qv-bar", {}, h("span", { style: { width: `${100 * share}%` } })));
  }

  /** The frame on screen at that second, made by the server: while, or because, the browser cannot play the file. */
  function showStill(seconds) {
    stillAt = seconds;
    still.src = address(`thumb/${file.id}/${seconds.toFixed(3)}.webp?width=960`);
    still.hidden = false;
    follow();
  }

  /** A box or point of one moment, over the picture inside the player; it goes when the moment has passed. */
  function drawMark(link) {
    fill(overlay);
    marked = link && (link.box || link.point) ? link : null;
    if (!marked) return;
    const { clientWidth: width, clientHeight: height } = screen;
    const scale = Math.min(width / (file.width || width), height / (file.height || height));
    const [w, h_] = [scale * (file.width || width), scale * (file.height || height)];
    const place = (x, y) => [(width - w) / 2 + (x / 1000) * w, (height - h_) / 2 + (y / 1000) * h_];
    const [x1, y1, x2, y2] = marked.box || [...marked.point, ...marked.point];
    const [left, top] = place(Math.min(x1, x2), Math.min(y1, y2));
    const [right, bottom] = place(Math.max(x1, x2), Math.max(y1, y2));
    fill(overlay, h(marked.box ? "i.qv-video-box" : "i.qv-point", { style: { left: `${left}px`, top: `${top}px`, ...(marked.box ? { width: `${right - left}px`, height: `${bottom - top}px` } : {}) } }, marked.label && h(top < 24 ? "b.qv-label-in" : "b", {}, marked.label)));
  }
  new ResizeObserver(() => drawMark(marked)).observe(screen);

  function seek(seconds) {
    if (marked && marked.t !== seconds) drawMark(null);
    target = Math.max(file.start, Math.min(seconds, file.start + file.duration));
    if (playable) apply();
    else showStill(target);
    follow();
  }

  function apply() {
    if (target === null || video.readyState < 1) return;
    const end = Number.isFinite(video.duration) ? Math.max(0, video.duration - 0.01) : target;
    video.currentTime = Math.min(target + EPSILON, end);
    target = null;
  }

  function follow() {
    const second = now();
    if (marked && target === null && !video.seeking && Math.abs(second - marked.t) > 0.5) drawMark(null);
    head.style.left = `${(100 * (second - file.start)) / file.duration}%`;
    words.follow(second);
    strip.follow(second);
  }

  function now() { return target ?? (playable ? video.currentTime : stillAt ?? file.start); }

  function refresh(known) {
    file = known;
    words.refresh(known);
    strip.refresh(known);
    shade();
  }

  function shade() {
    fill(seenBox, strip.spans().map(([start, end]) => h("i", { style: { left: `${(100 * (start - file.start)) / file.duration}%`, width: `${(100 * (end - start)) / file.duration}%` } })));
  }

  // By keyboard, wherever nothing else takes the keys: j k l, arrows, space, and , . picture by picture.

  /** To the picture before or after the one on screen, as the file has them. */
  async function step(way) {
    video.pause();
    const at = now();
    let known;
    try { known = await (await fetch(address(`media/${file.id}/around?t=${at.toFixed(3)}`))).json(); } catch { return; }
    if (now() === at && typeof known[way] === "number") seek(known[way]);
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !element.isConnected) return;
    const { classList } = document.body;
    if (matchMedia("(max-width: 900px)").matches ? !classList.contains("qv-evidence-up") : classList.contains("qv-evidence-away")) return;
    const { target: focused } = event;
    if (focused.closest?.("input, textarea, select, [contenteditable], .qv-menu, .qv-settings, [role='log']")) return;
    if (event.key === " " && focused.closest?.("button, a, summary")) return;
    const act = {
      j: () => seek(now() - 10), l: () => seek(now() + 10),
      ArrowLeft: () => seek(now() - 5), ArrowRight: () => seek(now() + 5),
      k: toggle, " ": toggle, ",": () => step("before"), ".": () => step("after"),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation(); // the player's own keys would do it twice
    act();
  }

  function toggle() {
    if (!playable) return;
    if (video.paused) video.play().catch(() => {}); else video.pause();
  }

  return {
    element,
    open(link) {
      if (link.t === undefined) return;
      cited = link;
      seek(link.t);
      drawMark(link);
      strip.show(link.t);
    },
    marks(links) {
      const key = links.map((link) => link.href).join();
      if (marksBox.dataset.key === key) return;
      marksBox.dataset.key = key;
      fill(marksBox, links.map((link) => {
        const left = (100 * (link.t - file.start)) / file.duration;
        const width = link.e !== undefined ? (100 * (link.e - link.t)) / file.duration : 0;
        return h("button.qv-mark-at" + (width ? ".qv-mark-span" : ""), { type: "button", title: `${clock(link.t)} ${link.around}`, "aria-label": `${clock(link.t)} ${link.around}`,
          style: { left: `${left}%`, width: width ? `${width}%` : "" }, onclick: (event) => { event.stopPropagation(); seek(link.t); } });
      }));
    },
    refresh,
    pause() { video.pause(); },
    close() { closed = true; strip.close(); words.close(); document.removeEventListener("keydown", keys, true); clearTimeout(timer); video.pause(); video.removeAttribute("src"); video.load(); },
  };
}
