// Where questions are written: text, files, presets, what it will cost, send and stop.

import { bytes, clock, fill, h, icon, iconButton, language, number, sentenceOf, t } from "./dom.js";
import { address, ask, command, emit, isRunning, on, serve, state } from "./session.js";
import { boards } from "./board.js";
import { preview } from "./thread.js";
import { drawNamed } from "./named.js";
import { openPath, upload } from "./upload.js";

const ACCEPT = { image: "image/*", video: "video/*,.mkv,.avi,.ts", document: "application/pdf,.pdf", subtitles: ".srt,.vtt,.ass,.ssa,.sub" };
const PAUSE = 350; // ms of stillness before the cost is counted

let box, chips, looked, presets, meter, named, lacking, trouble, button, picker, pathRow, pathBox;
let items = []; // uploads and stored files of the message being written
let task = "";

export function mount({ element, server }) {
  serve(server);
  const root = element.firstElementChild;
  trouble = h("div.qv-trouble", { role: "alert", hidden: true });
  chips = h("div.qv-chips");
  looked = boards(askAbout);
  presets = h("div.qv-presets", { role: "group" });
  meter = h("div.qv-meter");
  named = h("div.qv-named", { role: "status", hidden: true });
  lacking = h("div.qv-lacking", { role: "status", hidden: true });
  box = h("textarea.qv-box", { id: "qv-question", rows: 1, placeholder_t: "ask_more", label_t: "ask_more" });
  picker = h("input", { type: "file", multiple: true, hidden: true, id: "qv-picker", tabindex: -1 });
  button = h("button.qv-send", { type: "button", id: "qv-send" });
  pathBox = h("input.qv-input", { type: "text", placeholder_t: "path_hint", label_t: "path_hint", spellcheck: false });
  pathRow = h("form.qv-path", { hidden: true, onsubmit: addPath }, icon("folder", 16), pathBox, h("button.qv-button", { t: "open" }));
  fill(root,
    presets,
    h("div.qv-card-box", {},
      trouble, chips, looked.element, pathRow, box, named, lacking,
      h("div.qv-tools", {},
        iconButton("attach", "add_files", () => choose(), { id: "qv-attach" }),
        window.qvPage?.mediaFolder && iconButton("folder", "open_path", () => { pathRow.hidden = !pathRow.hidden; if (!pathRow.hidden) pathBox.focus(); }),
        meter, button)),
    h("p.qv-hint", { t: "hint" }),
    picker);
  listen(root);
  takeUp();
  redraw();
}

const DRAFT = "qv.draft";

/** Gradio loads the page anew when its server is back: what was begun goes on in this tab. */
function putAside() {
  const draft = { text: box.value, items: items.filter((item) => item.stored).map(({ name, size, stored }) => ({ name, size, stored, state: "done" })) };
  try { sessionStorage.setItem(DRAFT, JSON.stringify(draft)); } catch { /* no storage here */ }
}

function takeUp() {
  try {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) || "{}");
    sessionStorage.removeItem(DRAFT);
    box.value = draft.text || "";
    items = draft.items || [];
  } catch { /* no storage here */ }
}

function listen() {
  addEventListener("pagehide", putAside);
  box.addEventListener("input", () => { grow(); draw(); count(); });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  });
  box.addEventListener("paste", (event) => {
    const files = pastedFiles(event);
    if (files.length) { event.preventDefault(); addFiles(files); }
  });
  button.addEventListener("click", () => (isRunning() ? stop() : send()));
  picker.addEventListener("change", () => { addFiles([...picker.files]); picker.value = ""; });
  let depth = 0;
  const carries = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  const curtain = h("div.qv-curtain", { hidden: true }, h("div", {}, icon("attach", 28), h("span", { t: "drop_here" })));
  document.body.append(curtain);
  addEventListener("dragenter", (event) => { if (carries(event)) { event.preventDefault(); depth++; curtain.hidden = false; } });
  addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  addEventListener("dragleave", (event) => { if (carries(event) && --depth <= 0) { depth = 0; curtain.hidden = true; } });
  addEventListener("drop", (event) => {
    depth = 0;
    curtain.hidden = true;
    if (carries(event)) { event.preventDefault(); addFiles([...event.dataTransfer.files]); }
  });
  addEventListener("paste", (event) => {
    if (event.target.closest?.("input, textarea")) return;
    addFiles(pastedFiles(event));
  });
  addEventListener("keydown", (event) => {
    if (event.target !== box && event.target.closest?.("input, textarea")) return;
    if (event.key === "Escape" && isRunning() && !event.defaultPrevented && !document.querySelector(".qv-menu, .qv-drawer-open")) stop();
  });
  on("accepted", accepted);
  on("refused", refused);
  on("live", draw);
  on("sent", draw);
  on("thread", ({ other }) => { draw(); drawPresets(); if (other) count(0); });
  on("options", () => count());
  on("status", () => { draw(); count(); });
  on("language", () => { draw(); drawChips(); looked.draw(); drawPresets(); complain(...complaint); drawMeter(lastPrice); });
  on("choose", choose);
  on("example", example);
  on("new", () => { clear(); box.focus(); });
  drawPresets();
}

// Files ---------------------------------------------------------------------------------------------------------------

function choose(kind) {
  picker.accept = ACCEPT[kind] || Object.values(ACCEPT).join(",");
  picker.click();
}

/** Files on the clipboard; none when they are only a picture of the text beside them, as office programs copy it. */
function pastedFiles({ clipboardData }) {
  const types = clipboardData?.types || [];
  const isText = types.includes("text/plain") && (types.includes("text/html") || types.includes("text/rtf"));
  return isText ? [] : [...(clipboardData?.files || [])];
}

function addFiles(files) {
  if (!files.length) return;
  complain(null);
  for (const file of files) {
    const item = upload(file, (changed) => { updateChip(changed); if (changed.state === "done" || changed.state === "failed") settled(changed); });
    items.push(item);
  }
  drawChips();
  draw();
}

function settled(item) {
  if (item.state === "failed") {
    sendsUploaded = false;
    items = items.filter((each) => each !== item);
    complain(item.error, item.name);
  }
  drawChips();
  drawPresets();
  draw();
  if (sendsUploaded && !isUploading()) { sendsUploaded = false; send(); } else count(0);
}

async function addPath(event) {
  event.preventDefault();
  const path = pathBox.value.trim();
  if (!path) return;
  complain(null);
  try {
    const stored = await openPath(path);
    items.push({ name: stored.name, size: stored.size, state: "done", stored });
    pathBox.value = "";
    pathRow.hidden = true;
    box.focus();
  } catch (error) { complain(error); }
  drawChips();
  drawPresets();
  draw();
  count(0);
}

/** Asks an example's question about its file; to a message already begun it only adds the file. */
async function example(chosen) {
  if (isFetching || isRunning()) return; // a double click asks once
  const isEmpty = !box.value.trim() && !items.length;
  if (isEmpty) box.value = chosen.question[language()];
  grow();
  isFetching = true;
  try {
    const response = await fetch(address(`ui/sample/${chosen.file}`));
    if (!response.ok) throw new Error(response.statusText);
    addFiles([new File([await response.blob()], chosen.file, { type: response.headers.get("Content-Type") || "" })]);
    if (isEmpty) send();
  } catch { complain({ code: "upload_lost" }); }
  isFetching = false;
  draw();
}

function drawChips() {
  fill(chips, items.map(chip));
  chips.hidden = !items.length;
  looked.show(stored());
}

/** The second of a picture, written into the question. */
function askAbout(second) {
  const before = box.value.slice(0, box.selectionStart);
  box.setRangeText(`${before && !/\s$/.test(before) ? " " : ""}${clock(second)} `, box.selectionStart, box.selectionEnd, "end");
  box.dispatchEvent(new Event("input"));
  box.focus();
}

function chip(item) {
  const kind = item.stored?.kind;
  const picture = item.stored ? preview(item.stored, 120) : item.local && h("img", { src: item.local, alt: "" });
  const note = h("span.qv-chip-note");
  const bar = h("span.qv-chip-bar", {}, h("span"));
  const element = h("div.qv-chip", { title: item.name },
    picture || h("span.qv-chip-icon", {}, icon(kind === "video" || /\.(mp4|mov|mkv|webm|avi)$/i.test(item.name) ? "film" : kind === "document" || /\.pdf$/i.test(item.name) ? "page" : kind === "subtitles" || /\.(srt|vtt|ass|ssa|sub)$/i.test(item.name) ? "words" : "image", 18)),
    h("span.qv-chip-words", {}, h("span.qv-chip-name", {}, item.name), note),
    h("button.qv-chip-x", { type: "button", title: t("remove", { name: item.name }), "aria-label": t("remove", { name: item.name }), onclick: () => removeItem(item) }, icon("close", 14)),
    bar);
  item.draw = () => {
    const sending = item.state === "sending" || item.state === "waiting";
    const percent = item.size ? Math.floor((100 * item.sent) / item.size) : 0;
    bar.hidden = item.state === "done";
    bar.firstChild.style.width = `${percent}%`;
    element.classList.toggle("qv-chip-busy", item.state !== "done");
    note.textContent = sending ? t("uploading", { percent }) : item.state === "checking" ? t("checking") : noteOf(item.stored);
  };
  item.draw();
  return element;
}

const updateChip = (item) => { item.draw?.(); };

function noteOf(stored) {
  if (!stored) return "";
  if (stored.kind === "video") return `${clock(Math.round(stored.duration))} · ${bytes(stored.size)}`;
  if (stored.kind === "subtitles") return `${t("lines", { n: number(stored.lines) })} · ${bytes(stored.size)}`;
  if (stored.kind === "document") return `${t("meter_pages", { n: stored.pages })} · ${bytes(stored.size)}`;
  return `${stored.width} × ${stored.height}`;
}

function removeItem(item) {
  sendsUploaded = false;
  item.cancel?.();
  items = items.filter((each) => each !== item);
  drawChips();
  drawPresets();
  draw();
  count(0);
}

const stored = () => items.filter((item) => item.stored).map((item) => item.stored);
const isUploading = () => items.some((item) => !item.stored);

// Presets -------------------------------------------------------------------------------------------------------------

function drawPresets() {
  const kinds = new Set([...stored(), ...Object.values(state.thread.files)].map((file) => file.kind));
  const fitting = (window.qvPage?.tasks || []).filter((each) => each.kinds.some((kind) => kinds.has(kind)));
  presets.hidden = !fitting.length;
  fill(presets, fitting.map((each) => h("button.qv-preset", {
    type: "button", "aria-pressed": String(task === each.name),
    onclick: () => {
      const questions = window.qvPage.tasks.flatMap((other) => Object.values(other.question));
      if (task === each.name) { task = ""; if (questions.includes(box.value)) box.value = ""; }
      else { task = each.name; if (!box.value.trim() || questions.includes(box.value)) box.value = each.question[language()]; }
      grow();
      drawPresets();
      draw();
      count(0);
      box.focus();
    },
  }, each.title[language()])));
}

// Send and stop -------------------------------------------------------------------------------------------------------

function send() {
  if (isRunning()) return;
  if (state.sent) { sendsNext = true; return; } // a conversation is being opened: this belongs to it
  if (!box.value.trim() && !items.length) return;
  if (isUploading()) { sendsUploaded = true; fill(meter, h("span", {}, t("upload_wait"))); return; }
  complain(null);
  command({ do: "send", conversation: state.thread.conversation, text: box.value, files: stored(), task, options: state.options });
}

function stop() {
  button.classList.add("qv-stopping");
  const id = state.live?.conversation || state.thread.conversation;
  if (id) ask("stop", { conversation: id }).catch((error) => complain(error));
}

let sendsNext = false;
let sendsUploaded = false;
let isFetching = false; // an example's file

function accepted(sent) {
  if (sendsNext) { sendsNext = false; setTimeout(send); }
  if (sent.do === "send") { // what was written since stays
    items = items.filter((item) => !sent.files.some((file) => file.id === item.stored?.id));
    if (box.value === sent.text) { box.value = ""; task = ""; drawNamed(named, null); drawLacking([]); }
    redraw();
  }
  if (sent.answers) complain(null);
}

function refused({ sent, error }) {
  complain(error);
  if (error.code === "context_length_exceeded") count(0); // the plan that would fit stands beside the sentence again
  if (sent.do === "send") box.focus();
}

function clear() {
  for (const item of items) if (!item.stored) item.cancel?.();
  items = [];
  box.value = "";
  task = "";
  complain(null);
  redraw();
}

function redraw() {
  grow();
  drawChips();
  drawPresets();
  draw();
  count(0);
}

let complaint = []; // error and file name, to be said again in another language

function complain(error, name) {
  complaint = [error, name];
  const words = error ? sentenceOf(error.message ? error : { message: t(error.code || "lost_connection") }) : "";
  trouble.hidden = !words;
  fill(trouble, words && [icon("warn", 16), h("span", {}, name && !words.includes(name) ? `${name.slice(0, 120)}${language() === "zh" ? "：" : ": "}${words}` : words),
    h("button.qv-chip-x", { type: "button", title: t("close"), "aria-label": t("close"), onclick: () => complain(null) }, icon("close", 14))]);
}

function grow() {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
}

function draw() {
  const runs = isRunning();
  const canSend = Boolean(box.value.trim() || items.length);
  if (!runs) button.classList.remove("qv-stopping");
  const word = runs ? "stop" : "send";
  if (button.dataset.word !== word + language()) {
    button.dataset.word = word + language();
    button.title = t(word);
    button.setAttribute("aria-label", t(word));
    fill(button, icon(word, 20));
  }
  button.classList.toggle("qv-is-stop", runs);
  button.disabled = !runs && !canSend;
}

// What it costs -------------------------------------------------------------------------------------------------------

const LOOK_AGAIN = 1500; // ms
let timer = 0;
let counting = 0;
let lastPrice = null;

function count(pause = PAUSE) {
  clearTimeout(timer);
  timer = setTimeout(price, pause);
}

async function price() {
  const mine = ++counting;
  if (state.status && state.status.state !== "ready") { drawMeter(null); return; }
  const files = stored();
  const slow = setTimeout(() => { if (mine === counting) fill(meter, h("span.qv-dim", {}, t("meter_reading"))); }, 600);
  try {
    const answer = await ask("price", { conversation: state.thread.conversation, text: box.value, files, task, options: state.options });
    if (mine === counting) drawMeter(answer);
  } catch (error) {
    if (mine === counting) drawMeter({ error });
  } finally { clearTimeout(slow); }
}

function drawMeter(answer) {
  lastPrice = answer;
  drawNamed(named, answer?.named);
  drawLacking(answer?.left_out || []);
  if (sendsUploaded) { fill(meter, h("span", {}, t("upload_wait"))); return; }
  if (!answer) { fill(meter); return; }
  if (answer.error) {
    const words = sentenceOf(answer.error);
    fill(meter, words && h("span.qv-over", { title: words }, icon("warn", 14), words)); // none: the banner says it
    return;
  }
  const share = Math.min(1, answer.tokens / answer.context);
  const pieces = [];
  const moments = answer.shown.reduce((sum, file) => sum + (file.moments || 0), 0);
  const pages = answer.shown.reduce((sum, file) => sum + (file.pages || 0), 0);
  if (moments) pieces.push(t("meter_frames", { n: number(moments) }));
  const every_page = answer.shown.reduce((sum, file) => sum + (file.of_pages || file.pages || 0), 0);
  if (pages) pieces.push(pages < every_page ? t("meter_some_pages", { n: pages, all: number(every_page) }) : t("meter_pages", { n: pages }));
  const looked = answer.shown.map((file) => file.looked).filter((share) => typeof share === "number");
  if (looked.length) { // until then moments are spread evenly; sending does not wait
    pieces.push(t("meter_looked", { n: Math.round(100 * Math.min(...looked)) }));
    count(LOOK_AGAIN);
  }
  const [said, every] = answer.shown.reduce((sum, file) => [sum[0] + file.lines[0], sum[1] + file.lines[1]], [0, 0]);
  if (every) pieces.push(said < every ? t("meter_some_lines", { n: number(said), all: number(every) }) : t("meter_lines", { n: number(said) }));
  pieces.push(t("meter", { tokens: short(answer.tokens), context: short(answer.context) }));
  if (answer.positions) pieces.push(t("meter_positions", { n: short(answer.positions) }));
  if (answer.memory_bytes && answer.memory_free) pieces.push(t("meter_memory", { needed: (answer.memory_bytes / 2 ** 30).toFixed(1), free: (answer.memory_free / 2 ** 30).toFixed(1) }));
  const title = [t("meter", { tokens: number(answer.tokens), context: number(answer.context) }),
    answer.most_positions && t("meter_positions_of", { n: number(answer.positions), most: number(answer.most_positions) }), t("meter_answer", { n: number(answer.answer_tokens) }),
    ...answer.shown.map((file) => `${file.name}: ${number(file.tokens)} tokens` + (file.width ? ` (${file.width} × ${file.height})` : ""))].filter(Boolean).join("\n");
  const full = !answer.fits;
  fill(meter, h("span.qv-gauge", { title, class: undefined, role: "meter", "aria-valuenow": Math.round(100 * share), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": title },
    h("span.qv-ring", { style: { "--share": share } , dataset: { level: full || share > 0.95 ? "full" : share > 0.8 ? "high" : "" } }),
    h("span", {}, pieces.join(" · "))));
  if (answer.sentence) {
    complain({ message: answer.sentence, code: answer.code });
    if (answer.plan) trouble.insertBefore(h("button.qv-small", { type: "button", onclick: () => { emit("plan", answer.plan); complain(null); } }, `${planWords(answer.plan)} — ${t("meter_use")}`), trouble.lastChild);
  }
}

/** What will not be looked at for want of room, said before it is sent. */
function drawLacking(sentences) {
  lacking.hidden = !sentences.length;
  fill(lacking, sentences.map((message) => h("p", {}, icon("warn", 14), h("span", {}, sentenceOf({ message })))));
}

const planWords = (plan) => t("meter_plan", { plan: t("pages" in plan ? "plan_pages" : "plan_frames") });

const short = (value) => (value < 10_000 ? number(value) : `${Math.round(value / 1000)}K`);
