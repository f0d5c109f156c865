// The conversation in the middle: questions, answers as they stream, and what can be done with each.

import { clock, fill, h, icon, iconButton, language, number, sentenceOf, t, timeLeft } from "./dom.js";
import { address, command, connect, emit, isRunning, isStale, on, state } from "./session.js";
import { copy } from "./code.js";
import { forget, show } from "./markdown.js";
import { range } from "./named.js";
import { eventsMenu } from "./saving.js";
import { welcome } from "./welcome.js";
import "./links.js";

const MOMENTS = "a.qv-cite[href*='&t=']"; // links to seconds of a video
const SHOWN = 40; // messages on the page at once; earlier ones by a button

let root, scroller, rows, earlier, newest;
let shown = SHOWN;
let follows = true; // whether the view keeps to the newest words
let held = false; // a finger or button is down: nothing may move away from under it
const views = new Map(); // turn id -> row with its parts

export function mount({ element, trigger, watch, value }) {
  root = element.firstElementChild;
  earlier = h("button.qv-earlier", { type: "button", hidden: true, onclick: () => { shown += SHOWN; render(); } });
  rows = h("div.qv-rows", { role: "log", "aria-live": "polite", label_t: "history" });
  newest = h("button.qv-newest", { type: "button", title_t: "to_bottom", label_t: "to_bottom", hidden: true, onclick: () => toBottom(true) }, icon("bottom"));
  scroller = h("div.qv-scroller", { tabindex: -1 }, earlier, rows);
  fill(root, scroller, newest);
  scroller.addEventListener("scroll", () => {
    const distance = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    follows = distance < 60;
    newest.hidden = distance < 240;
  }, { passive: true });
  new ResizeObserver(() => { if (follows) toBottom(); }).observe(rows);
  scroller.addEventListener("pointerdown", () => { held = true; }, { passive: true });
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => setTimeout(() => { held = false; }, 50), { passive: true });
  watch(receive);
  on("live", renderLive);
  on("sent", render);
  on("language", () => { forget(); views.clear(); rows.replaceChildren(); render(); });
  on("status", () => { if (!state.thread.turns.length) render(); });
  connect(trigger);
  if (value()) receive(value());
  else render();
}

function receive(thread) {
  if (!thread?.turns || isStale(thread)) return;
  const other = thread.conversation !== state.thread.conversation;
  const files = Object.keys(thread.files).join() !== Object.keys(state.thread.files).join();
  state.thread = thread;
  if (files) forget();
  if (other) { views.clear(); rows.replaceChildren(); shown = SHOWN; follows = true; }
  render();
  emit("thread", { other });
  if (other) toBottom(true);
}

function render() {
  const { turns } = state.thread;
  const sent = state.sent?.answers && state.sent.command !== state.thread.command ? state.sent : null;
  if (!turns.length && !sent) {
    views.clear();
    earlier.hidden = true;
    rows.classList.add("qv-empty");
    const key = `${language()} ${state.status?.model?.name || ""}`;
    if (rows.firstChild?.dataset.key === key) return; // while a model loads there is news each second: no button may vanish for it
    fill(rows, welcome());
    rows.firstChild.dataset.key = key;
    scroller.scrollTop = 0;
    return;
  }
  rows.classList.remove("qv-empty");
  const hidden = Math.max(0, turns.length - shown);
  earlier.hidden = hidden === 0;
  earlier.textContent = t("show_earlier", { n: hidden });
  let visible = turns.slice(hidden);
  if (sent?.turn) {
    const cut = visible.findIndex((turn) => turn.id === sent.turn);
    if (cut >= 0) visible = visible.slice(0, cut);
  }
  const keep = new Set();
  const ordered = visible.map((turn, index) => {
    keep.add(turn.id);
    const old = views.get(turn.id);
    const isLast = index === visible.length - 1;
    const view = old || (turn.role === "user" ? question(turn) : answer(turn));
    views.set(turn.id, view);
    view.update(turn, isLast);
    return view.row;
  });
  for (const id of views.keys()) if (!keep.has(id)) views.delete(id);
  if (sent) ordered.push(...pending(sent));
  ordered.forEach((row, index) => { if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index] || null); });
  while (rows.children.length > ordered.length) rows.lastChild.remove();
  renderLive();
  if (sent) toBottom(true);
}

/** What was just sent, until the server has it on disk. */
function pending(sent) {
  const waiting = h("div.qv-row.qv-answer", {}, h("div.qv-progress", {}, h("span.qv-pulse"), t("preparing")));
  if (sent.do === "retry") return [waiting];
  return [
    h("div.qv-row.qv-question.qv-pending", {}, attachments(sent.files || []), sent.text && h("div.qv-bubble", {}, sent.text)),
    waiting,
  ];
}

function attachments(files) {
  if (!files.length) return null;
  return h("div.qv-files", {}, files.map((file) => {
    const picture = preview(file, 240);
    return h("button.qv-file", { type: "button", title: file.name, onclick: () => emit("open", { file }) },
      picture || h("span.qv-file-icon", {}, icon({ video: "film", document: "page", subtitles: "words" }[file.kind] || "image", 22)),
      h("span.qv-file-name", {}, file.name),
      file.kind === "video" && file.duration > 0 && h("span.qv-file-note", {}, clock(Math.round(file.duration))),
      file.kind === "subtitles" && h("span.qv-file-note", {}, t("lines", { n: file.lines })),
      file.kind === "document" && file.pages > 0 && h("span.qv-file-note", {}, t("meter_pages", { n: file.pages })));
  }));
}

/** A small picture of a file, or null while there is none. */
export function preview(file, width) {
  if (!file.id || file.missing || file.kind === "subtitles") return null;
  const path = file.kind === "video" ? `thumb/${file.id}/${middle(file)}.webp?width=${width}`
    : file.kind === "document" ? `page/${file.id}/1.webp?width=${width}` : `picture/${file.id}.webp?longest=${width}`;
  return h("img", { src: address(path), alt: "", loading: "lazy", decoding: "async", onerror: (event) => event.target.remove() });
}

/** Which part of a video a question was answered from, where that was not the whole. */
function spansRead(turn) {
  const read = Object.values(state.thread.files).flatMap((file) => (file.plans || []).filter((plan) => plan.turn === turn.id)
    .flatMap((plan) => plan.spans).filter(([start, end]) => end - start < file.duration - 0.5).map(([start, end]) => ({ file, start, end })));
  if (!read.length) return null;
  return h("div.qv-read", {}, icon("film", 13), read.map(({ file, start, end }) => h("button", { type: "button", title: file.name, onclick: () => emit("open", { file, t: start }) }, range(start, end))));
}

const middle = (file) => ((file.start || 0) + Math.min(1, file.duration / 2)).toFixed(1);

function versions(turn) {
  const { index, ids } = turn.versions;
  if (ids.length < 2) return null;
  const go = (step) => () => { if (!isRunning()) command({ do: "show", conversation: state.thread.conversation, turn: ids[index + step] }); };
  return h("span.qv-versions", {},
    iconButton("left", "previous_version", go(-1), { disabled: index === 0 }),
    h("span", {}, `${index + 1}/${ids.length}`),
    iconButton("right", "next_version", go(1), { disabled: index === ids.length - 1 }));
}

// A question ----------------------------------------------------------------------------------------------------------

function question(turn) {
  const body = h("div.qv-question-body");
  const foot = h("div.qv-foot");
  const row = h("article.qv-row.qv-question", { label_t: "you", dataset: { turn: turn.id } }, body, foot);
  let now = turn;
  const draw = () => {
    row.classList.remove("qv-editing");
    fill(body, attachments(now.files), now.text && h("div.qv-bubble", {}, now.text), spansRead(now));
    fill(foot, versions(now),
      h("span.qv-actions", {},
        iconButton("copy", "copy", (event) => copy(now.text, event.currentTarget)),
        iconButton("edit", "edit", () => edit(), { disabled: false })));
  };
  const edit = () => {
    if (isRunning()) return;
    row.classList.add("qv-editing");
    let files = [...now.files];
    const box = h("textarea.qv-edit-box", { value: now.text, rows: Math.min(8, now.text.split("\n").length + 1), label_t: "edit" });
    const send = () => {
      if (!box.value.trim() && !files.length) return;
      command({ do: "edit", conversation: state.thread.conversation, turn: now.id, text: box.value, files, task: now.task, options: state.options });
    };
    box.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
      if (event.key === "Escape") { event.stopPropagation(); draw(); }
    });
    const chips = h("div.qv-chips");
    const drawChips = () => fill(chips, files.map((file) => h("span.qv-chip", {}, preview(file, 80), h("span.qv-chip-name", {}, file.name),
      h("button.qv-chip-x", { type: "button", title: t("remove", { name: file.name }), "aria-label": t("remove", { name: file.name }), onclick: () => { files = files.filter((each) => each !== file); drawChips(); } }, icon("close", 14)))));
    drawChips();
    fill(body, chips, box, h("div.qv-edit-buttons", {},
      h("button.qv-button", { type: "button", t: "cancel", onclick: draw }),
      h("button.qv-button.qv-primary", { type: "button", t: "resend", onclick: send })));
    fill(foot);
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  };
  return {
    row,
    update(next) {
      const same = now === next || (row.dataset.drawn && JSON.stringify(now) === JSON.stringify(next));
      now = next;
      if (same && row.dataset.drawn) return;
      row.dataset.drawn = "1";
      draw();
    },
  };
}

// An answer -----------------------------------------------------------------------------------------------------------

function answer(turn) {
  const thoughts = h("div.qv-thoughts-text");
  const thoughtsTitle = h("span");
  const thinking = h("details.qv-thoughts", { hidden: true }, h("summary", {}, icon("right", 14), thoughtsTitle), thoughts);
  const text = h("div.qv-text");
  const steps = h("div.qv-closer", { hidden: true });
  const progress = h("div.qv-progress", { hidden: true });
  const note = h("div.qv-note", { hidden: true, role: "status" });
  const foot = h("div.qv-foot");
  const row = h("article.qv-row.qv-answer", { label_t: "assistant", dataset: { turn: turn.id } }, thinking, steps, text, progress, note, foot);
  let now = turn;
  let touched = false;
  thinking.querySelector("summary").addEventListener("click", () => { touched = true; });

  const draw = (isLast) => {
    const live = now.state === "partial";
    row.classList.toggle("qv-writing", live);
    show(text, now.text, live);
    const hasThoughts = Boolean(now.thinking);
    thinking.hidden = !hasThoughts;
    if (hasThoughts) {
      const isThinking = live && !now.text;
      thoughtsTitle.textContent = isThinking ? t("thinking") : t("thought", { seconds: (now.thinking_seconds || 0).toFixed(now.thinking_seconds < 10 ? 1 : 0) });
      if (!touched) thinking.open = isThinking;
      if (thinking.open || !isThinking) thoughts.textContent = now.thinking;
      if (isThinking && thinking.open) thoughts.scrollTop = thoughts.scrollHeight;
    }
    drawSteps();
    drawProgress(live);
    drawNote();
    const statistics = !live && statisticsOf(now.statistics || {});
    fill(foot, versions(now), !live && h("span.qv-actions", {},
      now.text && iconButton("copy", "copy", (event) => copy(now.text, event.currentTarget)),
      iconButton("retry", "retry", () => {
        if (!isRunning()) command({ do: "retry", conversation: state.thread.conversation, turn: now.id, options: state.options });
      }),
      text.querySelector(MOMENTS) && iconButton("download", "save_events", (event) => eventsMenu(event.currentTarget, now.id, (words) => { note.hidden = false; note.className = "qv-note qv-bad"; fill(note, icon("warn", 16), h("span", {}, words)); }), { "aria-haspopup": "menu" })), statistics && h("span.qv-stats", {}, statistics));
    foot.hidden = live;
    row.classList.toggle("qv-last", isLast);
  };

  let stepped = "";

  /** The second reading of a long film: which spans were looked at more closely, each a link, by how it was found. */
  const drawSteps = () => {
    const spans = now.closer?.length ? now.closer : now.statistics?.closer || [];
    const key = JSON.stringify([spans, language()]);
    if (key === stepped) return;
    stepped = key;
    steps.hidden = !spans.length;
    const film = spans.length && filmOf(now);
    const links = (way) => spans.filter(([, , first]) => (first || "named") === way).map(([start, end]) => {
      const words = `${clock(Math.round(start))} – ${clock(Math.round(end))}`;
      return film ? h("a.qv-cite", { href: `#qv?m=${film.id}&t=${start.toFixed(3)}&e=${end.toFixed(3)}` }, words) : h("span", {}, words);
    });
    const others = ["said", "told", "alike"].map((way) => [way, links(way)]).filter(([, found]) => found.length);
    fill(steps, icon("zoomin", 15), t("looked_closer"), links("named"),
      others.map(([way, found]) => h("span.qv-way", {}, t(`looked_${way}`), found)));
  };

  const drawProgress = (live) => {
    const prefill = now.prefill;
    const waits = live && !now.text && !now.thinking;
    progress.hidden = !waits;
    if (!waits) return;
    if (!prefill?.total) fill(progress, h("span.qv-pulse"), t("preparing"));
    else if (prefill.waiting > 0) fill(progress, h("span.qv-pulse"), t("waiting", { n: prefill.waiting }));
    else {
      const share = Math.min(1, prefill.done / prefill.total);
      fill(progress, h("span.qv-pulse"), t("reading", { done: number(prefill.done), total: number(prefill.total) }),
        h("span.qv-bar", { role: "progressbar", "aria-valuenow": Math.round(100 * share) }, h("span", { style: { width: `${100 * share}%` } })),
        prefill.seconds_left >= 2 && h("span", {}, timeLeft(prefill.seconds_left)));
    }
  };

  const drawNote = () => {
    note.className = "qv-note";
    note.hidden = true;
    const say = (words, kind) => { note.hidden = false; if (kind) note.classList.add(kind); fill(note, kind && icon("warn", 16), h("span", {}, words)); };
    if (now.state === "failed") say(sentenceOf({ message: now.note || t("failed"), code: now.code }), "qv-bad");
    else if (now.state === "aborted") say(now.text || now.thinking ? t("stopped") : t("stopped_empty"));
    else if (now.state === "done") {
      const notes = (now.note || "").split("\n").filter(Boolean).map((message) => sentenceOf({ message }));
      const words = [...notes, now.statistics?.reason === "length" && `${t("length")} ${t("continue_hint")}`];
      if (words.some(Boolean)) say(words.filter(Boolean).join(" "));
    }
  };

  return { row, update(next, isLast) { now = next; draw(isLast); } };
}

/** The video an answer is about: the last one shown before it. */
function filmOf(turn) {
  const at = state.thread.turns.findIndex((each) => each.id === turn.id);
  const files = state.thread.turns.slice(0, at < 0 ? undefined : at).flatMap((each) => each.files || []);
  return files.findLast((file) => file.kind === "video");
}

function statisticsOf(statistics) {
  const { completion_tokens: tokens, prompt_tokens: prompt, reused_tokens: reused, decode, prefill, queued } = statistics;
  if (!tokens) return "";
  const pieces = [decode > 0 ? t("stats", { tokens: number(tokens), speed: (tokens / decode).toFixed(tokens / decode < 10 ? 1 : 0) }) : t("tokens_count", { n: number(tokens) })];
  if (prefill >= 0.05) pieces.push(t("stats_first", { seconds: (prefill + (queued || 0)).toFixed(1) }));
  if (reused > 0 && prompt > 0) pieces.push(t("stats_reused", { percent: Math.floor((100 * reused) / prompt) }));
  return pieces.join(" · ");
}

function renderLive() {
  const live = state.live;
  if (!live || live.conversation !== state.thread.conversation) { rows.setAttribute("aria-live", "polite"); return; }
  rows.setAttribute("aria-live", live.state === "partial" ? "off" : "polite");
  const view = views.get(live.turn);
  const turn = state.thread.turns.find((each) => each.id === live.turn);
  if (!view || !turn || turn.state !== "partial") return;
  view.update({ ...turn, ...live.answer, state: live.state }, true);
  if (follows) toBottom();
  emit("answered");
}

function toBottom(force = false) {
  if (force) follows = true;
  if ((force || !held) && follows && !rows.classList.contains("qv-empty")) scroller.scrollTop = scroller.scrollHeight;
}
