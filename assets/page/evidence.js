// The right pane: a tab per file, and in it the second, the page or the box that an answer speaks of.

import { clock, fill, h, icon, iconButton, t } from "./dom.js";
import { on, readLink, state } from "./session.js";
import { open as openLink } from "./links.js";
import { player } from "./player.js";
import { pages } from "./pages.js";
import { picture } from "./picture.js";
import { sentenceAround } from "./excerpt.js";

let root, tabs, stage, cited;
let current = null; // id of the file shown
const viewers = new Map(); // file id -> {element, open(link), marks(links), close()}
let shownHref = null;
let attached = null; // id of the newest message with files

export function mount({ element }) {
  root = element.firstElementChild;
  tabs = h("div.qv-tabs", { role: "tablist", label_t: "evidence" });
  stage = h("div.qv-stage");
  cited = h("div.qv-cited");
  fill(root,
    h("div.qv-evidence-head", {}, h("button.qv-handle", { type: "button", label_t: "close", onclick: () => reveal(false) }), tabs,
      iconButton("close", "close", () => reveal(false), { className: "qv-ib qv-close-evidence" })),
    h("div.qv-evidence-body", {}, stage, cited));
  on("open", (link) => { show(link.file, link); reveal(true); });
  on("thread", ({ other }) => { if (other) closeAll(); draw(); });
  on("answered", schedule);
  on("evidence", reveal);
  on("language", renew);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("qv-evidence-up") && small()) { event.preventDefault(); reveal(false); }
  });
  draw();
}

/** Everything in the other language, at the evidence that was open. */
function renew() {
  const file = state.thread.files[current];
  const link = shownHref && readLink(shownHref);
  for (const viewer of viewers.values()) viewer.close();
  viewers.clear();
  cited.dataset.key = "";
  draw();
  if (file) show(file, link?.file.id === file.id ? link : undefined);
}

const small = () => matchMedia("(max-width: 900px)").matches;

/** On a phone the pane is a sheet that comes up; on a desk it can be put away. */
function reveal(up) {
  if (small()) document.body.classList.toggle("qv-evidence-up", up);
  else document.body.classList.toggle("qv-evidence-away", !up);
}

function closeAll() {
  for (const viewer of viewers.values()) viewer.close();
  viewers.clear();
  current = null;
  shownHref = null;
  document.body.classList.remove("qv-evidence-up", "qv-evidence-away");
}

function draw() {
  const files = viewable();
  document.body.classList.toggle("qv-has-evidence", files.length > 0);
  if (!files.length) {
    fill(tabs);
    fill(stage, h("div.qv-nothing", {}, icon("quote", 26), h("strong", {}, t("no_evidence")), h("span", {}, t("no_evidence_more"))));
    fill(cited);
    return;
  }
  const asked = state.thread.turns.filter((turn) => turn.files.length).pop();
  const newest = asked && asked.id !== attached ? asked.files.find((file) => file.kind !== "subtitles") : null; // files of a new message come to the front
  attached = asked?.id;
  if (newest || !state.thread.files[current]) show(newest || files[files.length - 1]);
  for (const [id, viewer] of viewers) if (state.thread.files[id]) viewer.refresh?.(state.thread.files[id]);
  drawTabs();
  collect();
}

/** Subtitle files are seen in the player of their video. */
const viewable = () => Object.values(state.thread.files).filter((file) => file.kind !== "subtitles");

function drawTabs() {
  fill(tabs, viewable().map((file) => h("button.qv-tab", {
    type: "button", role: "tab", "aria-selected": String(file.id === current), title: file.name, onclick: () => show(file),
  }, icon(file.kind === "video" ? "film" : file.kind === "document" ? "page" : "image", 15), h("span", {}, file.name))));
}

function show(file, link) {
  const known = state.thread.files[file.id] || file;
  if (known.kind === "subtitles") {
    const video = viewable().find((each) => each.subtitles?.some((words) => words.id === known.id));
    if (video) show(video);
    return;
  }
  if (!state.thread.files[file.id]) return; // a file of a message that is not accepted yet
  if (current !== known.id) viewers.get(current)?.pause?.();
  current = known.id;
  let viewer = viewers.get(known.id);
  if (!viewer) {
    viewer = known.missing ? gone() : { video: player, document: pages, image: picture }[known.kind](known);
    viewers.set(known.id, viewer);
  }
  if (stage.firstChild !== viewer.element) fill(stage, viewer.element);
  viewer.refresh?.(known);
  drawTabs();
  collect();
  if (link && link.t !== undefined || link?.href) { shownHref = link.href || null; viewer.open?.(link); markShown(); }
}

const gone = () => ({ element: h("div.qv-nothing", {}, icon("warn", 24), h("span", {}, t("gone"))), close() {} });

// Citations of the file shown, gathered from the answers on the page ---------------------------------------------------

let timer = 0;
function schedule() {
  if (!timer) timer = setTimeout(() => { timer = 0; collect(); }, 400);
}

function collect() {
  const found = new Map();
  for (const anchor of document.querySelectorAll(".qv-thread .qv-text a.qv-cite")) {
    const href = anchor.getAttribute("href");
    const link = readLink(href);
    if (!link || link.file.id !== current || found.has(href)) continue;
    found.set(href, { ...link, words: anchor.textContent, around: around(anchor) });
  }
  const links = [...found.values()].sort((a, b) => (a.t ?? a.page ?? 0) - (b.t ?? b.page ?? 0));
  viewers.get(current)?.marks?.(links);
  const key = links.map((link) => link.href + link.around).join("\n");
  if (cited.dataset.key === key && cited.dataset.file === current) { markShown(); return; }
  cited.dataset.key = key;
  cited.dataset.file = current || "";
  fill(cited, links.length > 0 && [h("h2", {}, t("cited")), h("ol", {}, links.map((link) =>
    h("li", {}, h("button.qv-citation", { type: "button", dataset: { href: link.href }, onclick: () => openLink(link.href) },
      h("span.qv-stamp", {}, link.t !== undefined ? clock(link.t) + (link.e !== undefined ? `–${clock(link.e)}` : "") : link.page !== undefined ? t("page_number", { n: link.page }) : icon("box", 14)),
      h("span.qv-around", {}, link.t === undefined && link.page === undefined ? link.label || link.words : link.around)))))]);
  markShown();
}

/** The sentence a citation stands in. */
function around(anchor) {
  const row = anchor.closest("tr");
  if (row) return [...row.cells].map((cell) => cell.textContent.trim()).filter((words) => words && words !== anchor.textContent).join(" · ").slice(0, 160);
  const block = anchor.closest("li, p, h2, h3, h4, h5, h6") || anchor.parentElement;
  const before = document.createRange();
  before.setStart(block, 0);
  before.setEndBefore(anchor);
  const start = before.toString().length;
  return sentenceAround(block.textContent, start, start + anchor.textContent.length).slice(0, 160);
}

function markShown() {
  for (const button of cited.querySelectorAll(".qv-citation")) button.classList.toggle("qv-shown", button.dataset.href === shownHref);
}
