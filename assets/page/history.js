// Conversations on the left: search, open, rename, delete, export.

import { fill, h, icon, iconButton, language, t } from "./dom.js";
import { ask, command, emit, on, serve, state } from "./session.js";
import { download } from "./code.js";
import { openMenu } from "./menu.js";

let root, list, search, listed = [];

export function mount({ element, server }) {
  serve(server);
  root = element.firstElementChild;
  search = h("input.qv-search", { type: "search", id: "qv-search", placeholder_t: "search", label_t: "search", oninput: () => { clearTimeout(search.timer); search.timer = setTimeout(load, 180); } });
  list = h("nav.qv-list", { label_t: "history" });
  fill(root,
    h("div.qv-brand", {}, h("img", { src: new URL("ui/icon.svg", document.baseURI).href, alt: "", width: 22, height: 22 }), h("strong", {}, "Qwen3-VL"),
      h("span.qv-grow"), iconButton("close", "close", () => emit("side", false), { className: "qv-ib qv-only-small" })),
    h("button.qv-new", { type: "button", id: "qv-new", onclick: fresh }, icon("plus", 18), h("span", { t: "new_chat" }), h("kbd", {}, mac() ? "⌘⇧O" : "Ctrl Shift O")),
    h("label.qv-search-box", {}, icon("search", 16), search, h("kbd", {}, mac() ? "⌘K" : "Ctrl K")),
    list);
  addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey)) return;
    if (event.key.toLowerCase() === "k") { event.preventDefault(); emit("side", true); search.focus(); search.select(); }
    if (event.shiftKey && event.key.toLowerCase() === "o") { event.preventDefault(); fresh(); }
  });
  on("thread", load);
  on("elsewhere", load);
  on("language", draw);
  let was = null;
  on("live", () => { if (state.live?.state !== was) { was = state.live?.state; draw(); } });
  load();
}

const mac = () => /Mac|iPhone|iPad/.test(navigator.platform);

function fresh() {
  command({ do: "open", conversation: null });
  emit("new");
  emit("side", false);
}

let loads = 0;

async function load() {
  const mine = ++loads;
  try {
    const { conversations } = await ask("conversations", { search: search.value });
    if (mine !== loads) return; // a later question was asked meanwhile
    listed = conversations;
    draw();
  } catch { /* the banner says that the server is away */ }
}

function groupOf(seconds) {
  const day = new Date();
  day.setHours(0, 0, 0, 0);
  const days = Math.floor((day / 1000 - seconds) / 86_400) + 1;
  return seconds * 1000 >= day ? "today" : days <= 1 ? "yesterday" : days <= 7 ? "week" : "older";
}

let drawn = "";
const entries = new Map(); // conversation id -> {row, key}

/** What did not change stays the same element: an entry must not vanish under a pressed pointer or a name being typed. */
function draw() {
  const writing = state.live?.state === "partial" ? state.live.conversation : "";
  const key = JSON.stringify([listed, state.thread.conversation, writing, language(), search.value]);
  if (key === drawn) return;
  drawn = key;
  const focused = list.contains(document.activeElement) && document.activeElement;
  const place = focused && { id: focused.closest(".qv-entry")?.dataset.id, isMenu: focused.matches(".qv-ib") };
  let group = "";
  const ordered = listed.flatMap((each) => {
    const own = groupOf(each.updated);
    const head = own !== group && h("h2", {}, t(own));
    group = own;
    return [head, rowOf(each, writing)].filter(Boolean);
  });
  if (!listed.length) ordered.push(h("p.qv-none", {}, search.value ? t("no_match", { query: search.value }) : t("no_history")));
  for (const old of [...list.children]) if (!ordered.includes(old)) old.remove();
  ordered.forEach((row, index) => { if (list.children[index] !== row) list.insertBefore(row, list.children[index] || null); });
  if (place && !list.contains(document.activeElement)) focusEntry(place.id, place.isMenu);
}

function rowOf(each, writing) {
  const key = JSON.stringify([each.title, each.id === state.thread.conversation, each.id === writing, language()]);
  const known = entries.get(each.id);
  if (known && (known.key === key || known.row.querySelector("input, .qv-danger"))) return known.row;
  const row = entry(each);
  entries.set(each.id, { row, key });
  return row;
}

/** The keyboard goes on where it was before the list was made anew. */
function focusEntry(id, isMenu = false) {
  const row = [...list.querySelectorAll(".qv-entry")].find((each) => each.dataset.id === id) || list.querySelector(".qv-entry");
  row?.querySelector(isMenu ? ".qv-ib" : ".qv-entry-title")?.focus({ preventScroll: true });
}

function entry(each) {
  const isCurrent = each.id === state.thread.conversation;
  const writes = state.live?.conversation === each.id && state.live.state === "partial";
  const row = h("div.qv-entry", { dataset: { id: each.id } },
    h("button.qv-entry-title", { type: "button", title: each.title, "aria-current": isCurrent ? "true" : undefined, onclick: () => { command({ do: "open", conversation: each.id }); emit("side", false); } },
      writes && h("span.qv-pulse"), each.title || t("untitled")),
    iconButton("more", "more", (event) => menu(event.currentTarget, row, each), { "aria-haspopup": "menu" }));
  return row;
}

/** The next drawing makes this entry anew: its name is typed, or its question answered. */
function renew(each) {
  entries.delete(each.id);
  drawn = "";
}

function menu(anchor, row, each) {
  openMenu(anchor, [
    ["edit", t("rename"), () => rename(row, each)],
    ["download", t("export_md"), () => exported(each, "md")],
    ["download", t("export_json"), () => exported(each, "json")],
    ["close", t("delete"), () => confirmDelete(row, each)],
  ]);
}

function rename(row, each) {
  const box = h("input.qv-input", { value: each.title, label_t: "rename", maxLength: 120 });
  let done = false;
  const end = async (save) => {
    if (done) return;
    done = true;
    const title = box.value.trim();
    if (save && title && title !== each.title) {
      try { await ask("rename", { conversation: each.id, title }); } catch { /* the list shows the old name again */ }
    }
    renew(each);
    load();
  };
  box.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") { event.preventDefault(); end(false); }
  });
  box.addEventListener("blur", () => end(true));
  fill(row, box);
  box.focus();
  box.select();
}

function confirmDelete(row, each) {
  const yes = h("button.qv-small.qv-danger", { type: "button", t: "delete", onclick: async () => {
    try { await ask("delete", { conversation: each.id }); } catch { /* still listed: it can be tried again */ }
    if (each.id === state.thread.conversation) command({ do: "open", conversation: null });
    renew(each);
    load();
  } });
  fill(row, h("span.qv-entry-sure", { t: "delete_sure" }), yes, h("button.qv-small", { type: "button", t: "keep", onclick: () => { renew(each); draw(); } }));
  yes.focus();
}

async function exported(each, format) {
  try {
    const file = await ask("exported", { conversation: each.id, format });
    download(file.name, file.text, format === "json" ? "application/json" : "text/markdown");
  } catch { load(); }
}
