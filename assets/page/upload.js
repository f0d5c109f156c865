// Files on their way to the server: an XHR each, so that the percentage is true, two at a time.

import { t } from "./dom.js";
import { address } from "./session.js";

const AT_ONCE = 2;
let running = 0;
const queue = [];

/** Starts (or queues) one upload; `changed` is called whenever `item` has news. `item.stored` is set at the end. */
export function upload(file, changed) {
  const item = { name: file.name || t("pasted"), size: file.size, sent: 0, state: "waiting", error: null, stored: null, local: localPicture(file) };
  item.cancel = () => {
    item.state = "cancelled";
    item.request?.abort();
    if (item.local) URL.revokeObjectURL(item.local);
    const at = queue.findIndex((each) => each.item === item);
    if (at >= 0) queue.splice(at, 1);
  };
  queue.push({ item, file, changed });
  next();
  return item;
}

function next() {
  while (running < AT_ONCE && queue.length) {
    const { item, file, changed } = queue.shift();
    running++;
    send(item, file, changed, () => { running--; next(); });
  }
}

function send(item, file, changed, done) {
  const request = (item.request = new XMLHttpRequest());
  const end = (change) => { if (item.state !== "cancelled") { Object.assign(item, change); changed(item); } done(); };
  request.open("POST", address(`upload?name=${encodeURIComponent(item.name)}`));
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.upload.onprogress = (event) => { item.state = "sending"; item.sent = event.loaded; changed(item); };
  request.upload.onload = () => { if (item.state !== "cancelled") { item.state = "checking"; item.sent = item.size; changed(item); } };
  request.onload = () => {
    const answer = read(request.responseText);
    if (request.status >= 200 && request.status < 300 && answer?.id) end({ state: "done", stored: answer });
    else end({ state: "failed", error: errorOf(answer) });
  };
  request.onerror = () => end({ state: "failed", error: { code: "upload_lost" } });
  request.onabort = () => done();
  item.state = "sending";
  changed(item);
  request.send(file);
}

function read(text) {
  try { return JSON.parse(text); } catch { return null; }
}

export function errorOf(answer) {
  const message = answer?.error?.message;
  return message ? { message, code: answer.error.code } : { code: "upload_lost" };
}

const localPicture = (file) => (/^image\/(png|jpeg|webp|gif|avif|bmp)$/.test(file.type) && file.size < 30e6 ? URL.createObjectURL(file) : null);

/** A file below the media folder of the server, by its path there. */
export async function openPath(path) {
  const response = await fetch(address("upload/path"), {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ path }),
  }).catch(() => null);
  const answer = response && read(await response.text());
  if (response?.ok && answer?.id) return answer;
  throw errorOf(answer);
}
