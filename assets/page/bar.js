// The line above the chat: which model answers, language, theme, settings; and the banner when that is not the real one.

import { fill, h, icon, iconButton, language, number, remember, sentenceOf, setLanguage, t } from "./dom.js";
import { ask, emit, on, serve, state } from "./session.js";

let root, chip, title, banner, theme, tongue;
let dismissed = null;
let failures = 0;

export function mount({ element, server }) {
  serve(server);
  root = element.firstElementChild;
  chip = h("button.qv-model", { type: "button", "aria-expanded": "false", onclick: card });
  title = h("h1.qv-title");
  banner = h("div.qv-banner", { role: "status", hidden: true });
  theme = h("button.qv-ib", { type: "button", id: "qv-theme", onclick: nextTheme });
  tongue = h("button.qv-ib.qv-tongue", { type: "button", id: "qv-language", onclick: () => { setLanguage(language() === "zh" ? "en" : "zh"); emit("language"); } });
  fill(root, h("div.qv-bar-row", {},
    iconButton("menu", "open_history", () => emit("side", true), { id: "qv-open-side", className: "qv-ib qv-only-small" }),
    chip, title, h("span.qv-grow"), tongue, theme,
    iconButton("panel", "evidence", () => emit("evidence", small() || document.body.classList.contains("qv-evidence-away")), { id: "qv-open-evidence", className: "qv-ib qv-if-evidence" }),
    iconButton("sliders", "settings", () => emit("drawer"), { id: "qv-open-settings" })), banner);
  on("language", draw);
  on("thread", () => { title.textContent = state.thread.title || ""; document.title = state.thread.title ? `${state.thread.title} · Qwen3-VL` : "Qwen3-VL"; });
  on("side", (isOpen) => document.body.classList.toggle("qv-side-up", isOpen));
  document.getElementById("qv").append(h("div.qv-side-shade", { onclick: () => emit("side", false) }));
  addEventListener("keydown", (event) => { if (event.key === "Escape" && document.body.classList.contains("qv-side-up")) { event.preventDefault(); emit("side", false); } }, true);
  on("sent", () => { if (state.sent) pollWithin(PATIENCE); }); // whether a command that hangs was heard at all
  addEventListener("offline", () => pollWithin(0));
  addEventListener("online", () => pollWithin(0));
  draw();
  poll();
}

const small = () => matchMedia("(max-width: 900px)").matches;

const PATIENCE = 3000; // ms
let timer = 0;
let polling = false;

function pollWithin(pause) {
  if (polling) return;
  clearTimeout(timer);
  timer = setTimeout(poll, pause);
}

async function poll() {
  polling = true;
  try {
    const status = await ask("status");
    const changed = JSON.stringify(status) !== JSON.stringify(state.status);
    const wasAway = failures > 0;
    failures = 0;
    state.status = status;
    if (changed || wasAway) { draw(); emit("status"); }
  } catch {
    failures++;
    draw();
  }
  polling = false;
  timer = setTimeout(poll, failures ? 4000 : state.status?.state === "loading" ? 1000 : 20_000);
}

const MODES = { auto: "half", light: "sun", dark: "moon" };

function nextTheme() {
  const modes = Object.keys(MODES);
  const mode = modes[(modes.indexOf(themeNow()) + 1) % modes.length];
  remember("qv.theme", mode);
  window.qvPaint();
  draw();
}

function themeNow() {
  try { return localStorage.getItem("qv.theme") || "auto"; } catch { return "auto"; }
}

function draw() {
  const mode = themeNow();
  const words = t("theme", { mode: t(`theme_${mode}`) });
  theme.title = words;
  theme.setAttribute("aria-label", words);
  fill(theme, icon(MODES[mode]));
  tongue.title = t("language");
  tongue.setAttribute("aria-label", t("language"));
  fill(tongue, language() === "zh" ? "EN" : "中");
  drawChip();
  drawBanner();
}

function drawChip() {
  const status = state.status;
  const model = status?.model;
  const kind = !status ? "" : status.state === "failed" ? "failed" : status.state === "loading" ? "loading" : model && !model.trained ? "untrained" : model?.demo ? "demo" : "real";
  chip.dataset.kind = kind;
  const name = model?.name || t("model");
  fill(chip, h("i"), h("span.qv-model-name", {}, name), kind && kind !== "real" && h("span.qv-badge", {}, t(`model_${kind}`)), icon("down", 14));
}

function drawBanner() {
  const status = state.status;
  const model = status?.model;
  let content = null;
  let kind = "";
  if (failures > 1) { kind = "lost"; content = [icon("warn", 16), h("span", {}, t("banner_lost"))]; }
  else if (status?.state === "loading") {
    kind = "loading";
    const share = status.total > 0 ? Math.min(1, status.done / status.total) : 0;
    content = [h("span.qv-pulse"), h("span", {}, t("banner_loading"), " ", h("em", {}, stageOf(status))), status.total > 0 && h("span.qv-bar", {}, h("span", { style: { width: `${100 * share}%` } }))];
  } else if (status?.state === "failed") { kind = "failed"; content = [icon("warn", 16), h("span", {}, sentenceOf({ message: status.sentence, code: "model_failed" }))]; }
  else if (model && !model.trained) { kind = "untrained"; content = [icon("warn", 16), h("span", {}, t("banner_untrained"), " ", h("code", {}, status.command))]; }
  else if (model?.demo) { kind = "demo"; content = [icon("chip", 16), h("span", {}, t("banner_demo"), " ", h("code", {}, status.command), skillsOf(model))]; }
  banner.hidden = !content || dismissed === kind;
  banner.dataset.kind = kind;
  const mayHide = kind === "demo" || kind === "untrained";
  fill(banner, content, mayHide && h("button.qv-chip-x", { type: "button", title: t("dismiss"), "aria-label": t("dismiss"), onclick: () => { dismissed = kind; drawBanner(); } }, icon("close", 14)));
}

function skillsOf({ skills }) {
  const said = (names) => names.map((name) => t(`skill_${name}`)).join(t("list_comma"));
  const lines = [];
  if (skills?.good.length) lines.push(t("banner_good", { skills: said(skills.good) }));
  if (skills?.weak.length) lines.push(t("banner_weak", { skills: said(skills.weak) }));
  return lines.length ? h("small.qv-skills", {}, lines.join(" ")) : null;
}

function stageOf({ stage, done, total, sentence }) {
  if (stage === "downloading" && total > 0) return t("stage_downloading", { done: (done / 1e9).toFixed(1), total: (total / 1e9).toFixed(1) });
  if (stage === "loading" && total > 0) return t("stage_loading", { percent: Math.floor((100 * done) / total) });
  return stage === "finding" ? t("stage_finding") : sentenceOf({ message: sentence });
}

function card() {
  const old = document.querySelector(".qv-model-card");
  if (old) { old.remove(); return; }
  const model = state.status?.model;
  if (!model) return;
  const row = (word, value) => value && h("div", {}, h("dt", {}, t(word)), h("dd", {}, value));
  const sheet = h("dl.qv-menu.qv-model-card", {},
    row("model", model.checkpoint), row("device", model.device),
    row("quantization", model.quantization === "none" ? t("full_weights") : model.quantization),
    row("kv_cache", model.kv_cache),
    row("context_length", t("tokens_count", { n: number(model.context_length) })));
  const place = chip.getBoundingClientRect();
  sheet.style.left = `${place.left}px`;
  sheet.style.top = `${place.bottom + 6}px`;
  document.body.append(sheet);
  chip.setAttribute("aria-expanded", "true");
  const close = (event) => {
    if (event.type === "keydown" ? event.key !== "Escape" : sheet.contains(event.target) || chip.contains(event.target)) return;
    if (event.type === "keydown") event.preventDefault(); // this Escape is not for the answer
    sheet.remove();
    chip.setAttribute("aria-expanded", "false");
    removeEventListener("pointerdown", close, true);
    removeEventListener("keydown", close, true);
  };
  addEventListener("pointerdown", close, true);
  addEventListener("keydown", close, true);
}
