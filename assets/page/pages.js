// A PDF: one page at a time as the picture the model saw, with what was cited on it.

import { fill, h, iconButton, t } from "./dom.js";
import { address } from "./session.js";
import { overlay } from "./picture.js";

export function pages(file) {
  const view = overlay();
  const box = h("input.qv-page-box", { type: "text", inputMode: "numeric", label_t: "page", maxLength: 5 });
  const total = h("span");
  const before = iconButton("left", "previous_page", () => show(page - 1));
  const after = iconButton("right", "next_page", () => show(page + 1));
  const chips = h("div.qv-page-chips");
  const element = h("div.qv-document", { tabindex: -1 }, h("div.qv-pager", {}, before, h("label", {}, box, total), after, h("span.qv-grow"), chips), view.element);
  let page = 0;
  let links = [];

  box.addEventListener("change", () => { const wanted = parseInt(box.value, 10); show(Number.isNaN(wanted) ? page : wanted); });
  element.addEventListener("keydown", (event) => {
    if (event.target === box) return;
    const step = { PageUp: -1, PageDown: 1, ...(view.isEnlarged() ? {} : { ArrowLeft: -1, ArrowRight: 1 }) }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    show(page + step);
  });

  const path = (number) => `page/${file.id}/${number}.webp?width=1200`;

  function show(number) {
    const next = Math.max(1, Math.min(Math.round(number), file.pages));
    if (next !== page) {
      page = next;
      const size = file.sizes?.[page - 1];
      view.reset();
      view.set(path(page), size?.[0], size?.[1]);
      const ahead = page + 1;
      if (ahead <= file.pages) new Image().src = address(path(ahead));
    }
    box.value = String(page);
    total.textContent = ` / ${file.pages}`;
    before.disabled = page <= 1;
    after.disabled = page >= file.pages;
    element.dataset.page = page;
    mark();
  }

  function mark() {
    view.marks(links.filter((link) => link.page === page));
    const cited = [...new Set(links.map((link) => link.page))];
    fill(chips, cited.slice(0, 12).map((number) => h("button.qv-small", { type: "button", "aria-pressed": String(number === page), title: t("page_number", { n: number }), onclick: () => show(number) }, String(number))));
  }

  show(1);
  return {
    element,
    open(link) { if (link.page) { show(link.page); view.open(link); } },
    marks(next) { links = next.filter((link) => link.page); mark(); },
    refresh(known) { file = known; },
    close() {},
  };
}
