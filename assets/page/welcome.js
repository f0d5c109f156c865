// The empty page: what it is for, and examples where the server has them.

import { h, icon, language, t } from "./dom.js";
import { address, emit, state } from "./session.js";

export function welcome() {
  const examples = window.qvPage?.examples || [];
  return h("div.qv-welcome", {},
    h("img.qv-mark", { src: address("ui/icon.svg"), alt: "", width: 44, height: 44 }),
    h("h1", {}, t("hello")),
    h("p", {}, t("hello_more")),
    h("div.qv-cards", {}, [["video", "film"], ["document", "page"], ["image", "image"]].map(([kind, name]) =>
      h("button.qv-card", { type: "button", onclick: () => emit("choose", kind) },
        icon(name, 22), h("strong", {}, t(`card_${kind}`)), h("span", {}, t(`card_${kind}_more`))))),
    examples.length > 0 && h("div.qv-examples", {},
      h("h2", {}, t("examples")),
      examples.map((example) => h("button.qv-example", { type: "button", onclick: () => emit("example", example) },
        icon({ video: "film", document: "page", image: "image" }[example.kind] || "quote", 16),
        h("span", {}, example.question[language()])))),
    state.status?.model && h("p.qv-answering", {}, icon("chip", 14), state.status.model.name));
}
