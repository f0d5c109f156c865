// The video: our own <video> below one address, a timeline with what was cited, and the frames the model saw.

import { clock, fill, h, icon, t } from "./dom.js";
import { address } from "./session.js";
import { tracks } from "./tracks.js";

const EPSILON = 0.001; // seconds: a seek to a frame's exact time may land on the frame before

/** What the model was shown last: one second for the two frames of each moment. */
const momentsOf = (file) => (file.plans?.at(-1).pairs || []).map(([first, second]) => Math.round(500 * (first + second)) / 1000);

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
  const times = h("div.qv-times", {}, h("span", {}, clock(file.start)), h("span", {}, clock(file.start + file.duration)));
  const strip = h("div.qv-strip");
  const stripHead = h("h2");
  const element = h("div.qv-player", {}, screen, making, line, times, words.element, stripHead, strip);

  let target = null; // seconds wanted before the player knows its file
  let playable = false;
  let timer = 0;
  let closed = false;
  let moments = [];
  let marked = null;

  video.addEventListener("loadedmetadata", apply);
  video.addEventListener("timeupdate", follow);
  video.addEventListener("seeking", follow);
  for (const name of ["loadeddata", "seeked"]) video.addEventListener(name, () => { if (playable && target === null && !video.seeking) still.hidden = true; });
  video.addEventListener("error", () => { if (video.src) { playable = false; say(t("no_play")); showStill(target ?? Math.max(file.start, video.currentTime)); } });
  words.refresh(file);
  drawStrip(momentsOf(file));
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
    const now = target ?? video.currentTime;
    if (marked && target === null && !video.seeking && Math.abs(now - marked.t) > 0.5) drawMark(null);
    head.style.left = `${(100 * (now - file.start)) / file.duration}%`;
    const nearest = nearestTo(now);
    words.follow(now);
    for (const moment of moments) moment.element.classList.toggle("qv-near", moment === nearest);
  }

  const nearestTo = (second) => moments.reduce((best, each) => (!best || Math.abs(each.seconds - second) < Math.abs(best.seconds - second) ? each : best), null);

  function drawStrip(seconds) {
    stripHead.hidden = strip.hidden = !seconds.length;
    fill(stripHead, h("span", {}, t("sampled")), h("span.qv-dim", {}, file.plans ? t("sampled_count", { n: seconds.length, width: file.plans.at(-1).frame[0], height: file.plans.at(-1).frame[1] }) : ""));
    moments = seconds.map((second) => ({ seconds: second, element: h("button.qv-moment", { type: "button", title: clock(second), onclick: () => seek(second) },
      h("img", { src: address(`thumb/${file.id}/${second.toFixed(3)}.webp?width=160`), alt: "", loading: "lazy", decoding: "async", onerror: (event) => event.target.classList.add("qv-broken") }),
      h("span", {}, clock(second))) }));
    fill(strip, moments.map((moment) => moment.element));
    strip.dataset.key = seconds.join();
  }

  return {
    element,
    open(link) {
      if (link.t === undefined) return;
      seek(link.t);
      drawMark(link);
      const nearest = nearestTo(link.t);
      if (nearest) strip.scrollTo({ left: nearest.element.offsetLeft - strip.clientWidth / 2 + nearest.element.clientWidth / 2, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
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
    refresh(known) {
      file = known;
      words.refresh(known);
      if (strip.dataset.key !== momentsOf(known).join()) drawStrip(momentsOf(known));
    },
    pause() { video.pause(); },
    close() { closed = true; clearTimeout(timer); video.pause(); video.removeAttribute("src"); video.load(); },
  };
}
