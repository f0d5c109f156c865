// Elements, icons and words. Nothing here, or anywhere in the page, writes HTML from text: text goes in as text.

import { inChinese } from "./translate.js";

const SVG = "http://www.w3.org/2000/svg";

/** h("button.primary", {onclick, t: "send", title_t: "send"}, child, ...): an element; falsy children are left out. */
export function h(tag, properties, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "t") { element.dataset.t = value; element.textContent = t(value); }
    else if (key.endsWith("_t")) { element.dataset[key.replace("_t", "T")] = value; setWord(element, key.slice(0, -2), value); }
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, each] of Object.entries(value)) element.style.setProperty(name.replace(/[A-Z]/g, (letter) => "-" + letter.toLowerCase()), each);
    else if (key === "dataset") Object.assign(element.dataset, value);
    else if (key in element && !["list", "form", "width", "height", "role"].includes(key)) element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const ICONS = {
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4",
  menu: "M4 7h16M4 12h16M4 17h10",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V6M6 11l6-6 6 6",
  attach: "M20 11.5l-8.2 8.2a5 5 0 0 1-7.1-7.1l8.5-8.5a3.4 3.4 0 0 1 4.8 4.8l-8.4 8.4a1.7 1.7 0 0 1-2.4-2.4l7.6-7.6",
  folder: "M3.5 7.5a2 2 0 0 1 2-2h4l2 2.5h7a2 2 0 0 1 2 2v7.5a2 2 0 0 1-2 2h-13a2 2 0 0 1-2-2z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  retry: "M4.5 12a7.5 7.5 0 1 0 2.3-5.4M4 4v4h4",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  down: "M6 9.5l6 6 6-6",
  bottom: "M12 5v13M6 12.5l6 6 6-6",
  sliders: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.8v4.4M9 14.8v4.4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.8v2M12 19.2v2M2.8 12h2M19.2 12h2M5.5 5.5l1.4 1.4M17.1 17.1l1.4 1.4M18.5 5.5l-1.4 1.4M6.9 17.1l-1.4 1.4",
  moon: "M20 14.2A8.2 8.2 0 0 1 9.8 4a8.2 8.2 0 1 0 10.2 10.2z",
  half: "M12 3.5a8.5 8.5 0 1 0 0 17zM12 3.5a8.5 8.5 0 0 1 0 17",
  panel: "M4 5h16v14H4zM14.5 5v14",
  film: "M4 5h16v14H4zM8 5v14M16 5v14M4 12h16M4 8.5h4M4 15.5h4M16 8.5h4M16 15.5h4",
  page: "M6 3.5h8l4.5 4.5v12.5H6zM14 3.5V8h4.5M9 12.5h6.5M9 16h6.5",
  pin: "M12 5v14M5 12h14",
  denser: "M4 6v12M8 6v12M11 6v12M13.5 6v12M16 6v12M20 6v12",
  words: "M4 5.5h16v13H4zM7.5 11h4M14 11h2.5M7.5 14.5h2.5M12.5 14.5h4",
  image: "M4 5h16v14H4zM4 16l4.5-4.5 4 4 2.5-2.5 5 5M15.5 9.5h.01",
  box: "M5 9V5h4M15 5h4v4M19 15v4h-4M9 19H5v-4",
  zoomin: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4M11 8v6M8 11h6",
  zoomout: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4M8 11h6",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 9.3a2.7 2.7 0 1 0 0 5.4 2.7 2.7 0 0 0 0-5.4z",
  warn: "M12 4l9 16H3zM12 10v4.5M12 17.3h.01",
  chip: "M7 7h10v10H7zM10 3.5V7M14 3.5V7M10 17v3.5M14 17v3.5M3.5 10H7M3.5 14H7M17 10h3.5M17 14h3.5",
  download: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  quote: "M5 17V11a4 4 0 0 1 4-4M14 17v-6a4 4 0 0 1 4-4",
};

export function icon(name, size = 18) {
  const shape = svg("svg", {
    viewBox: "0 0 24 24", width: size, height: size, fill: "none", stroke: "currentColor", "stroke-width": 1.75,
    "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true", class: "qv-icon",
  });
  if (name === "stop") shape.append(svg("rect", { x: 7, y: 7, width: 10, height: 10, rx: 2, fill: "currentColor", stroke: "none" }));
  else if (name === "half") shape.append(
    svg("path", { d: "M12 3.5a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17z" }),
    svg("path", { d: "M12 3.5a8.5 8.5 0 0 1 0 17z", fill: "currentColor" }),
  );
  else shape.append(svg("path", { d: ICONS[name], "stroke-width": name === "more" ? 2.6 : 1.75 }));
  return shape;
}

/** A button that is only an icon; its name is for screen readers and the tooltip. */
export function iconButton(name, word, onclick, properties) {
  return h("button.qv-ib", { type: "button", title_t: word, label_t: word, onclick, ...properties }, icon(name));
}

// Words -------------------------------------------------------------------------------------------------------------

const page = window.qvPage || { words: { en: {}, zh: {} } };

export const language = () => document.documentElement.dataset.language;

export function t(key, values) {
  const words = page.words[language()][key] ?? key;
  return values ? words.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole)) : words;
}

function setWord(element, attribute, key) {
  const name = { title: "title", placeholder: "placeholder", label: "aria-label" }[attribute];
  element.setAttribute(name, t(key));
}

export function setLanguage(next) {
  document.documentElement.dataset.language = next;
  remember("qv.language", next);
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const name of ["title", "placeholder", "label"]) {
    for (const element of document.querySelectorAll(`[data-${name}-t]`)) setWord(element, name, element.dataset[name + "T"]);
  }
}

/** A server's `{message, code}` in the person's language. What has no Chinese (a library's own words) stays English,
 *  behind a Chinese headline for its code. */
export function sentenceOf(error) {
  const message = error?.message || "";
  if (language() !== "zh") return message;
  return inChinese(message) ?? (page.words.zh["code_" + error?.code] || "") + message;
}

// Storage that may be refused (private windows) ---------------------------------------------------------------------

export function remember(key, value) {
  try {
    if (value === null || value === undefined) localStorage.removeItem(key);
    else localStorage.setItem(key, typeof value === "string" ? value : JSON.stringify(value));
  } catch { /* a private window: the choice lasts as long as the page */ }
}

export function recall(key, otherwise = null) {
  try {
    const text = localStorage.getItem(key);
    return text === null ? otherwise : JSON.parse(text);
  } catch { return otherwise; }
}

// Numbers -----------------------------------------------------------------------------------------------------------

export const number = (value) => Math.round(value).toLocaleString("en-US");

/** 47 -> 0:47, 2710 -> 45:10, 5405.25 -> 1:30:05.3 (tenths only where they are not zero). */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const whole = Math.floor(tenths / 10);
  const pad = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const tail = tenths % 10 ? `.${tenths % 10}` : "";
  const minutes = Math.floor(whole / 60) % 60;
  return (hours ? `${hours}:${pad(minutes)}` : `${minutes}`) + `:${pad(whole % 60)}${tail}`;
}

/** What is still to come of some work, about. */
export const timeLeft = (seconds) => (seconds < 90 ? t("seconds_left", { n: Math.max(1, Math.round(seconds)) }) : t("minutes_left", { n: Math.round(seconds / 60) }));

/** "1:30:05", "45:10", "47.5" -> seconds; null when it is none of them, undefined when empty. */
export function seconds(text) {
  if (!text.trim()) return undefined;
  if (!/^\s*(\d+:)?(\d+:)?\d+(\.\d+)?\s*$/.test(text)) return null;
  return text.split(":").reduce((sum, piece) => sum * 60 + Number(piece), 0);
}

export function bytes(size) {
  if (size < 1e6) return `${Math.max(1, Math.round(size / 1e3))} KB`;
  if (size < 1e9) return `${(size / 1e6).toFixed(1)} MB`;
  return `${(size / 1e9).toFixed(2)} GB`;
}
