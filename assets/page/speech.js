// Writing down what is said, where the server can: what it takes, how far it is, and its lines as subtitles.

import { fill, h, icon, number, sentenceOf, t, timeLeft } from "./dom.js";
import { address, emit } from "./session.js";

const AGAIN = 1000; // ms

/** `written` is called once, when the lines are there. Returns {element, show, close}; `show` takes what the server knows. */
export function speechTools(file, written) {
  const element = h("div.qv-speech", { hidden: true, role: "group" });
  const path = `media/${file.id}/speech`;
  const button = (word, onclick) => h("button.qv-small", { type: "button", t: word, onclick });
  let timer = 0;
  let closed = false;
  let isWritten = false;

  async function call(method, more = "") {
    const response = await fetch(address(path + more), { method });
    const told = await response.json();
    if (!response.ok) throw told.error;
    return told;
  }

  async function act(method) {
    try { show(await call(method)); } catch (error) { fail(error); }
  }

  async function offer() {
    fill(element, h("span.qv-pulse"), h("span", { t: "speech_looking" }));
    try {
      const told = await call("GET", "/offer");
      const minutes = Math.max(1, Math.round(told.seconds / 60));
      fill(element,
        h("span.qv-grow", {}, t("speech_offer", { model: told.model, minutes: number(minutes) }), " ", told.megabytes ? t("speech_download", { megabytes: number(told.megabytes) }) : ""),
        button("speech_start", () => act("POST")), button("cancel", () => show({ state: "none" })));
    } catch (error) { fail(error); }
  }

  function fail(error) {
    const sentence = sentenceOf(error?.message ? error : { message: t("lost_connection") });
    fill(element, icon("warn", 14), h("span.qv-grow", {}, sentence), button("close", () => show({ state: "none" })));
  }

  function show(told) {
    clearTimeout(timer);
    element.hidden = !told || closed;
    if (element.hidden) return;
    element.dataset.state = told.state;
    if (told.state === "none") fill(element, h("button.qv-small", { type: "button", onclick: offer }, icon("words", 14), h("span", { t: "speech_write" })));
    else if (told.state === "failed") fail({ message: told.sentence });
    else if (told.state === "ready") {
      fill(element, icon("words", 14), h("span", {}, told.lines ? t("speech_done", { n: number(told.lines) }) : t("speech_nothing")));
      if (told.lines && !isWritten) { isWritten = true; written(`${path}.vtt`, told.language); emit("options"); } // its price is another
    } else {
      const percent = Math.floor(100 * told.progress);
      const left = told.left === null ? "" : timeLeft(told.left);
      fill(element, h("span.qv-pulse"),
        h("span.qv-grow", {}, [told.stage === "listening" ? t("speech_listening", { percent }) : t(`speech_${told.stage}`), left].filter(Boolean).join(" · ")),
        button("cancel", () => act("DELETE")));
      timer = setTimeout(async () => {
        try { show(await call("GET")); } catch { if (!closed) timer = setTimeout(() => show(told), AGAIN); }
      }, AGAIN);
    }
  }

  return { element, show, close() { closed = true; clearTimeout(timer); } };
}
