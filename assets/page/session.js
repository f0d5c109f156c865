// What the panes share: the conversation shown, its files, the running answer, and how to reach the server.

const listeners = new Map();

export const state = {
  thread: { conversation: null, title: "", turns: [], files: {} },
  live: null, // the running (or just finished) answer
  sent: null, // a command the server has not accepted yet
  status: null, // the model: {state, sentence, model, ...}
  options: {}, // what the drawer is set to; only what differs from the model's own
};

/** Returns what takes the listener away again. */
export function on(name, call) {
  if (!listeners.has(name)) listeners.set(name, new Set());
  listeners.get(name).add(call);
  return () => listeners.get(name).delete(call);
}

export function emit(name, detail) {
  for (const call of listeners.get(name) || []) call(detail);
}

export const isRunning = () => {
  const live = state.live;
  return Boolean(state.sent?.answers || (live && live.conversation === state.thread.conversation && live.state === "partial"));
};

// Commands stream their results back into the thread and live panes; functions answer once. ---------------------------

let trigger = null;
let commands = 0;
let newest = "";
const waiting = [];

/** Commands run side by side on the server, so an older one's result may come last: it is not what was asked for now. */
export const isStale = (result) => Boolean(result.command) && result.command !== newest;

export const replaced = new Map(); // number -> a question that a newer command overtook, not accepted yet

export function connect(call) {
  trigger = call;
  for (const detail of waiting.splice(0)) trigger("command", detail);
}

/** Sends a command; its number comes back in `live.command`. */
export function command(detail) {
  if (state.sent?.do === "send") replaced.set(state.sent.command, state.sent);
  newest = `${tab}-${++commands}`;
  const numbered = { ...detail, command: newest };
  state.sent = { ...numbered, answers: ["send", "edit", "retry"].includes(detail.do), at: performance.now() };
  emit("sent");
  if (trigger) trigger("command", numbered);
  else waiting.push(numbered);
  return numbered.command;
}

/** Sends the unanswered command again under its number: Gradio shows a pane only the last of the values that come
 *  together, so an older command's last word can swallow a newer one's only answer. */
export function repeat() {
  const { answers, at, ...detail } = state.sent;
  if (trigger) trigger("command", detail);
}

const tab = Math.random().toString(36).slice(2, 8);
const servers = {};
const serverWaits = [];

export function serve(functions) {
  Object.assign(servers, functions);
  for (const wake of serverWaits.splice(0)) wake();
}

/** Calls a server function; throws {message, code} with a sentence for the person. */
export async function ask(name, detail = {}) {
  while (!servers[name]) await new Promise((wake) => serverWaits.push(wake));
  const answer = await Promise.resolve(servers[name](detail)).catch(() => null);
  if (!answer) throw { message: "", code: "lost_connection" }; // Gradio's client answers nothing when the server is away
  if (answer.error) throw answer.error;
  return answer;
}

/** An address of ours, below whatever prefix the page is served under. */
export const address = (path) => new URL(path.replace(/^\//, ""), document.baseURI).href;

// Evidence links ------------------------------------------------------------------------------------------------------

const finite = (text) => (text !== null && /^\d{1,7}(\.\d{1,6})?$/.test(text) ? Number(text) : null);
const numbers = (text, count) => {
  const values = (text || "").split(",").map(finite);
  return values.length === count && values.every((value) => value !== null && value <= 1000) ? values : null;
};

/** `#qv?m=...` -> {file, t, e, page, box, point, label}; null unless it names a file of this conversation and finite
 *  numbers in range: a document's text or the model may have forged it. */
export function readLink(href) {
  if (typeof href !== "string" || !href.startsWith("#qv?")) return null;
  const query = new URLSearchParams(href.slice(4));
  const id = query.get("m") || "";
  if (!Object.hasOwn(state.thread.files, id)) return null;
  const file = state.thread.files[id];
  const link = { file, href, label: (query.get("l") || "").slice(0, 80) };
  if (query.has("p")) {
    link.page = finite(query.get("p"));
    if (file.kind !== "document" || !Number.isInteger(link.page) || link.page < 1 || link.page > file.pages) return null;
  } else if (file.kind === "document") return null;
  if (file.kind === "video") {
    link.t = finite(query.get("t"));
    if (link.t === null || link.t > file.duration + 1) return null;
    if (query.has("e")) {
      link.e = finite(query.get("e"));
      if (link.e === null || link.e < link.t) return null;
    }
  }
  if (query.has("b")) {
    link.box = numbers(query.get("b"), 4);
    if (!link.box) return null;
  }
  if (query.has("x")) {
    link.point = numbers(query.get("x"), 2);
    if (!link.point) return null;
  }
  if (file.kind === "image" && !link.box && !link.point) return null;
  return link;
}
