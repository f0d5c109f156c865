// The drawer: how answers are drawn and how much of a video or PDF is shown. Empty fields are left to the model.

import { clock, fill, h, iconButton, language, recall, remember, seconds, t } from "./dom.js";
import { emit, on, state } from "./session.js";

const SAMPLING = [
  { key: "temperature", least: 0, most: 2, step: 0.05, more: "temperature_more" },
  { key: "top_p", least: 0.05, most: 1, step: 0.01 },
  { key: "top_k", least: 0, most: 200, step: 1 },
  { key: "min_p", least: 0, most: 0.5, step: 0.01 },
  { key: "presence_penalty", least: -2, most: 2, step: 0.1 },
  { key: "repetition_penalty", least: 0.5, most: 2, step: 0.01 },
];

const PARTS = ["start", "end", "pages", "whole", "moments"]; // of one message, not kept for the next

let root, body, back;

export function mount({ element }) {
  root = element.firstElementChild;
  state.options = recall("qv.options", {}) || {};
  body = h("form.qv-settings-form", { onsubmit: (event) => event.preventDefault() });
  root.setAttribute("role", "dialog");
  fill(root, h("div.qv-drawer-head", {}, h("h1", { t: "settings" }), iconButton("close", "close", () => open(false))), body);
  back = h("div.qv-shade", { onclick: () => open(false) });
  document.getElementById("qv").append(back); // inside its stacking order
  root.inert = true;
  on("drawer", open);
  on("language", draw);
  on("status", draw);
  on("plan", (plan) => { for (const [key, value] of Object.entries(plan)) set(key, value); draw(); });
  on("accepted", (sent) => { if (sent.do === "send") forgetParts(sent.files.length ? PARTS : PARTS.filter((key) => key !== "pages")); });
  on("new", () => forgetParts());
  addEventListener("keydown", (event) => { if (event.key === "Escape" && document.body.classList.contains("qv-drawer-open")) { event.preventDefault(); open(false); } }, true);
  draw();
}

function open(isOpen = !document.body.classList.contains("qv-drawer-open")) {
  document.body.classList.toggle("qv-drawer-open", isOpen);
  root.inert = !isOpen;
  if (isOpen) root.querySelector("input, textarea")?.focus({ preventScroll: true });
}

/** Pages and spans belong to one message. */
function forgetParts(keys = PARTS) {
  for (const key of keys) if (key in state.options) set(key, null);
  draw();
}

function set(key, value) {
  const next = { ...state.options };
  if (value === null || value === "" || value === undefined || Number.isNaN(value)) delete next[key];
  else next[key] = value;
  state.options = next;
  remember("qv.options", Object.fromEntries(Object.entries(next).filter(([name]) => !PARTS.includes(name))));
  emit("options");
}

let drawn = "";

function draw() {
  const model = state.status?.model;
  const own = model?.sampling || {};
  const key = language() + JSON.stringify(model || null) + JSON.stringify(state.options);
  if (key === drawn || body.contains(document.activeElement)) { if (key === drawn) return; }
  drawn = key;
  fill(body,
    h("fieldset", {}, h("legend", { t: "settings_sampling" }),
      SAMPLING.map((field) => slider(field, own[field.key])),
      number_("seed", "", { more: "seed_more" }),
      number_("max_tokens", own.max_tokens, { least: 1 }),
      model?.thinking && number_("thinking_budget", "", { least: 1 })),
    h("fieldset", {}, h("legend", { t: "settings_video" }),
      number_("fps", "", { least: 0.01, most: 30, step: "any" }),
      number_("most_moments", "", { least: 1 }),
      toggle("subtitles", "read_subtitles"),
      toggle("zoom", "zoom", "zoom_more"),
      h("div.qv-field", {}, h("span.qv-field-name", { t: "span" }), h("div.qv-pair", {}, time("start", "span_from"), time("end", "span_to"))),
      h("label.qv-field", {}, h("span.qv-field-name", { t: "pages" }), text("pages", "pages_hint"))),
    h("fieldset", {}, h("legend", { t: "settings_system" }),
      h("textarea.qv-input", { rows: 4, placeholder_t: "system_hint", label_t: "settings_system", value: state.options.system || "", oninput: (event) => set("system", event.target.value) })),
    h("button.qv-button", { type: "button", t: "settings_reset", onclick: () => { state.options = {}; remember("qv.options", null); emit("options"); draw(); } }));
}

function slider({ key, least, most, step, more }, own) {
  const value = state.options[key] ?? own;
  const shown = h("output", {}, value === undefined ? "" : String(value));
  const range = h("input", { type: "range", min: least, max: most, step, id: `qv-${key}`, value: value ?? least });
  const reset = iconButton("retry", "settings_reset", () => { set(key, null); range.value = own ?? least; paint(own); }, { className: "qv-ib qv-reset" });
  const paint = (next) => { shown.textContent = next === undefined ? "" : String(next); reset.classList.toggle("qv-off", !(key in state.options)); range.style.setProperty("--share", (Number(range.value) - least) / (most - least)); };
  range.addEventListener("input", () => { const next = Number(range.value); set(key, next === own ? null : next); paint(next); });
  range.value = value ?? least;
  paint(value);
  return h("div.qv-field", {}, h("div.qv-field-head", {}, h("label", { t: key, htmlFor: `qv-${key}` }), h("span.qv-grow"), reset, shown), range, more && h("small", { t: more }));
}

/** On unless it was turned off. */
function toggle(key, word, more) {
  const box = h("input", { type: "checkbox", id: `qv-${key}`, checked: state.options[key] !== false, onchange: (event) => set(key, event.target.checked ? null : false) });
  return h("label.qv-field.qv-check-field", {}, box, h("span", { t: word }), more && h("small", { t: more }));
}

function number_(key, own, { least, most, step = 1, more } = {}) {
  const box = h("input.qv-input", { type: "number", id: `qv-${key}`, min: least, max: most, step, value: state.options[key] ?? "", placeholder: own ? String(own) : t("automatic"),
    oninput: (event) => { if (event.target.checkValidity()) set(key, event.target.value === "" ? null : Number(event.target.value)); } });
  return h("label.qv-field.qv-line-field", {}, h("span.qv-field-name", { t: key }), box, more && h("small", { t: more }));
}

function time(key, hint) {
  const value = state.options[key];
  return h("input.qv-input", { type: "text", placeholder_t: hint, label_t: hint, value: value === undefined ? "" : clock(value), oninput: (event) => {
    const next = seconds(event.target.value);
    event.target.setAttribute("aria-invalid", String(next === null));
    if (next !== null) set(key, next);
  } });
}

function text(key, hint) {
  return h("input.qv-input", { type: "text", placeholder_t: hint, value: state.options[key] || "", oninput: (event) => set(key, event.target.value.trim()) });
}
