// Formulas as MathML, by the KaTeX that Gradio ships; without it the source is shown. Loaded when the first one appears.

import { h } from "./dom.js";
import { address } from "./session.js";

let katex = null;
let loading = null;
const waiting = new Set();

function load() {
  const file = window.qvPage?.katex;
  if (!file || loading) return;
  loading = import(address(file)).then((module) => {
    katex = module.default;
    for (const draw of waiting) draw();
    waiting.clear();
  }).catch(() => waiting.clear());
}

export function math(source, block) {
  const element = h("span.qv-formula", {}, h("code", {}, source.trim()));
  const draw = () => {
    const drawn = document.createElement("span");
    try {
      katex.render(source.trim(), drawn, { output: "mathml", displayMode: block, throwOnError: true, trust: false, maxExpand: 200, maxSize: 20 });
      element.replaceChildren(...drawn.childNodes);
    } catch { /* not a formula after all: its source stays */ }
  };
  if (katex) draw();
  else { waiting.add(draw); load(); }
  return element;
}
