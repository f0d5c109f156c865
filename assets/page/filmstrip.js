// What the model saw of a video, moment by moment, and a question asked again with other moments: without some, with the
// second on screen, or denser around it.

import { clock, fill, h, icon, number, t } from "./dom.js";
import { address, command, emit, isRunning, on, state } from "./session.js";
import { range } from "./named.js";

const AROUND = 4; // seconds to each side that are looked at more closely
const FPS = 2; // there, as the model was trained; where they are as close already, twice that, up to MOST_FPS
const MOST_FPS = 8;

const middle = ([first, second]) => Math.round(500 * (first + second)) / 1000;

/** `seek` goes to a second, `now` is the one on screen, `chose` is called when another question's moments are looked at. */
export function filmstrip(file, { seek, now, chose }) {
  const strip = h("div.qv-strip");
  const title = h("span");
  const count = h("span.qv-dim");
  const chooser = h("select.qv-plan", { label_t: "sampled", hidden: true, onchange: () => { chosen = Number(chooser.value); edited = null; draw(); chose(); } });
  const pin = tool("pin", "pin_second", () => add([[round(now()), round(now())]]));
  const denser = tool("denser", "denser_here", () => add(around(now())));
  const changed = h("div.qv-changed", { hidden: true, role: "status" });
  const element = h("section.qv-film", {}, h("h2", {}, title, count, chooser, h("span.qv-film-tools", {}, pin, denser)), changed, strip);
  let plans = [];
  let chosen = -1; // index of the plan shown
  let edited = null; // pairs, while they differ from what was shown
  let moments = [];
  let key = "";
  const stops = [on("live", paint), on("sent", paint)];

  function tool(name, word, call) { return h("button.qv-small", { type: "button", title_t: word, onclick: call }, icon(name, 14), h("span", { t: word })); }

  const plan = () => plans[chosen];
  const pairs = () => edited || plan()?.pairs || [];
  const round = (second) => Math.round(second * 1000) / 1000;

  /** Moments of two frames each, all over a few seconds. */
  function around(second) {
    const start = Math.max(file.start, Math.floor(second) - AROUND), end = Math.min(file.start + file.duration, Math.floor(second) + AROUND);
    const there = pairs().filter(([a, b]) => a >= start && b <= end).length;
    let fps = FPS;
    while (fps < MOST_FPS && there >= ((end - start) * fps) / 2 - 1) fps *= 2;
    const found = [];
    for (let at = start; at + 1 / fps < end; at += 2 / fps) found.push([round(at), round(at + 1 / fps)]);
    return found;
  }

  /** Those that are there already at the same place give way. */
  function add(more) {
    const [first, last] = [more[0][0], more.at(-1)[1]];
    const kept = pairs().filter(([a, b]) => b < first - 0.01 || a > last + 0.01);
    edited = [...kept, ...more].sort((a, b) => a[0] - b[0]);
    draw();
    show(more[0][0]);
  }

  function drop(pair) {
    edited = pairs().filter((each) => each !== pair);
    draw();
  }

  function draw() {
    element.hidden = !plans.length;
    if (element.hidden) return;
    title.textContent = t("sampled");
    count.textContent = t("sampled_count", { n: number(pairs().length), width: plan().frame[0], height: plan().frame[1] });
    chooser.hidden = plans.length < 2;
    fill(chooser, plans.map((each, index) => h("option", { value: String(index), selected: index === chosen }, `${index + 1}. ${words(each)}`)));
    const known = new Set(plan().pairs.map(middle));
    moments = pairs().map((pair) => {
      const second = middle(pair);
      const box = h("div.qv-moment-box", {},
        h("button.qv-moment" + (edited && !known.has(second) ? ".qv-new-moment" : ""), { type: "button", title: clock(second), onclick: () => seek(second) },
          h("img", { src: address(`thumb/${file.id}/${second.toFixed(3)}.webp?width=160`), alt: "", loading: "lazy", decoding: "async", onerror: (event) => event.target.classList.add("qv-broken") }),
          h("span", {}, clock(second))),
        h("button.qv-moment-x", { type: "button", title: t("drop_moment", { at: clock(second) }), "aria-label": t("drop_moment", { at: clock(second) }), onclick: () => drop(pair) }, icon("close", 12)));
      return { seconds: second, element: box.firstChild, box };
    });
    const left = strip.scrollLeft;
    fill(strip, moments.map((moment) => moment.box));
    strip.scrollLeft = left;
    paint();
    follow(now());
  }

  const words = (each) => {
    const turn = state.thread.turns.find((one) => one.id === each.turn);
    const part = each.spans.some(([start, end]) => end - start < file.duration - 0.5) ? each.spans.map(([start, end]) => range(start, end)).join(", ") : "";
    return [part, (turn?.text || "").slice(0, 40)].filter(Boolean).join(" · ");
  };

  function paint() {
    changed.hidden = !edited;
    if (!edited) return;
    const turn = state.thread.turns.find((each) => each.id === plan().turn);
    fill(changed, h("span.qv-grow", {}, t("moments_changed", { n: number(edited.length), before: number(plan().pairs.length) })),
      h("button.qv-small", { type: "button", t: "undo_changes", onclick: () => { edited = null; draw(); } }),
      h("button.qv-small.qv-ask-again", { type: "button", t: "ask_again", disabled: isRunning() || !turn || !edited.length, onclick: () => {
        command({ do: "edit", conversation: state.thread.conversation, turn: turn.id, text: turn.text, files: turn.files, task: turn.task, options: { ...state.options, moments: { [file.id]: edited } } });
        if (matchMedia("(max-width: 900px)").matches) emit("evidence", false); // the answer is below the sheet
      } }));
  }

  const nearestTo = (second) => moments.reduce((best, each) => (!best || Math.abs(each.seconds - second) < Math.abs(best.seconds - second) ? each : best), null);

  function follow(second) {
    const nearest = nearestTo(second);
    for (const moment of moments) moment.element.classList.toggle("qv-near", moment === nearest);
  }

  function show(second) {
    const box = nearestTo(second)?.box;
    if (box) strip.scrollTo({ left: box.offsetLeft - strip.clientWidth / 2 + box.clientWidth / 2, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  return {
    element,
    follow,
    show,
    /** The parts of the film the model was shown, where that was not the whole. */
    spans: () => (plan()?.spans || []).filter(([start, end]) => end - start < file.duration - 0.5),
    refresh(known) {
      file = known;
      const next = JSON.stringify(known.plans || []);
      if (next === key) return;
      key = next;
      plans = known.plans || [];
      chosen = plans.length - 1;
      edited = null;
      draw();
    },
    close() { for (const stop of stops) stop(); },
  };
}
