// What part of a video a question names, said before it is sent, and taken back with one click.

import { clock, fill, h, icon, language, t } from "./dom.js";
import { emit } from "./session.js";

export const range = (start, end) => `${clock(start)}–${clock(end)}`;

/** `named` as the server counted it: [{id, name, start, end, used}]. */
export function drawNamed(element, named) {
  element.hidden = !named?.length;
  if (element.hidden) return;
  const files = new Map();
  for (const each of named) files.set(each.id, [...(files.get(each.id) || []), each]);
  const { used } = named[0];
  const comma = language() === "zh" ? "、" : ", ";
  const words = [...files.values()].map((spans) => t(used ? "named_used" : "named_whole", { name: spans[0].name, spans: spans.map((span) => range(span.start, span.end)).join(comma) }));
  fill(element, icon("film", 15), h("span", {}, words.join(" ")),
    h("button.qv-small", { type: "button", onclick: () => emit("plan", { whole: used || null }) }, t(used ? "named_undo" : "named_redo")));
}
