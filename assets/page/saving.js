// What can be taken away: the events of an answer as a file, a frame or a part of a video.

import { clock, fill, h, icon, seconds, sentenceOf, t } from "./dom.js";
import { address, ask, state } from "./session.js";
import { download } from "./code.js";
import { openMenu } from "./menu.js";

const EVENTS = { srt: "text/plain", vtt: "text/vtt", youtube: "text/plain", csv: "text/csv", json: "application/json" };
const AROUND = 5; // seconds before and after, as a first guess of a part

/** The menu of an answer that names times of a video. */
export function eventsMenu(anchor, turn, failed) {
  openMenu(anchor, Object.keys(EVENTS).map((format) => ["download", t(`events_${format}`), async () => {
    try {
      const file = await ask("take_events", { conversation: state.thread.conversation, turn, format });
      download(file.name, file.text, EVENTS[format]);
    } catch (error) { failed(sentenceOf(error) || t("lost_connection")); }
  }]));
}

/** A button with its menu, and the line below the player where a part is chosen. `now` is the second on screen, `span`
 *  a part that was cited or null. */
export function savingTools(file, { now, span }) {
  const line = h("div.qv-saving", { hidden: true, role: "group" });
  const button = h("button.qv-small", { type: "button", "aria-haspopup": "menu", onclick: () => openMenu(button, [
    ["image", t("save_png"), () => save(`media/${file.id}/frame.png?t=${now().toFixed(3)}`)],
    ["image", t("save_jpg"), () => save(`media/${file.id}/frame.jpg?t=${now().toFixed(3)}`)],
    ["film", t("save_part"), choose],
  ]) }, icon("download", 14), h("span", { t: "save" }));

  function choose() {
    const [start, end] = span() || [Math.max(file.start, now() - AROUND), Math.min(file.start + file.duration, now() + AROUND)];
    const from = h("input.qv-input", { type: "text", value: clock(start), label_t: "part_from", inputMode: "numeric" });
    const to = h("input.qv-input", { type: "text", value: clock(end), label_t: "part_to", inputMode: "numeric" });
    const go = () => {
      const [first, last] = [from, to].map((box) => seconds(box.value));
      for (const [box, value] of [[from, first], [to, last]]) box.setAttribute("aria-invalid", String(typeof value !== "number"));
      if (typeof first === "number" && typeof last === "number") save(`media/${file.id}/clip.mp4?start=${first}&end=${last}`);
    };
    line.hidden = false;
    fill(line, from, h("span", {}, "–"), to,
      h("button.qv-small", { type: "button", t: "save", onclick: go }),
      h("button.qv-small", { type: "button", t: "cancel", onclick: () => { line.hidden = true; } }));
    for (const box of [from, to]) box.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
    from.focus();
    from.select();
  }

  async function save(path) {
    line.hidden = false;
    fill(line, h("span.qv-pulse"), h("span", { t: "saving" }));
    try {
      const response = await fetch(address(path));
      if (!response.ok) throw (await response.json()).error;
      const name = /filename\*=utf-8''([^;]+)/i.exec(response.headers.get("Content-Disposition") || "")?.[1] || /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") || "")?.[1];
      download(decodeURIComponent(name || "video"), await response.blob(), response.headers.get("Content-Type"));
      line.hidden = true;
    } catch (error) {
      fill(line, icon("warn", 14), h("span.qv-grow", {}, sentenceOf(error?.message ? error : { message: t("lost_connection") })),
        h("button.qv-small", { type: "button", t: "close", onclick: () => { line.hidden = true; } }));
    }
  }

  return { button, line };
}
