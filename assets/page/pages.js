// A PDF: one page at a time as the picture the model saw, with what was cited on it.

import { fill, h, iconButton, t } from "./dom.js";
import { address } from "./session.js";
import { overlay } from "./picture.js";

/** What a sentence quotes: in quotation marks, or numbers of three digits and more. */
function quoted(link) {
  const said = (link.around || "").replace(link.words || "", " ");
  const marked = [...said.matchAll(/["“「『]([^"“”「」『』]{2,80})["”」』]/g)].map((match) => match[1]);
  return [...new Set([...marked, ...(said.match(/\d[\d.,]*\d{2}/g) || [])])].slice(0, 4);
}

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
  const found = new Map(); // "page words" -> boxes in thousandths

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
    const here = links.filter((link) => link.page === page);
    view.marks([...here, ...here.filter((link) => !link.box && !link.point).flatMap(passages)]);
    const cited = [...new Set(links.map((link) => link.page))];
    fill(chips, cited.slice(0, 12).map((number) => h("button.qv-small", { type: "button", "aria-pressed": String(number === page), title: t("page_number", { n: number }), onclick: () => show(number) }, String(number))));
  }

  /** Where the page's own text says what a citation quotes, as marks; what is not known yet is asked for. */
  function passages(link) {
    return quoted(link).flatMap((words) => {
      const key = `${page} ${words}`;
      if (!found.has(key)) {
        found.set(key, []);
        fetch(address(`page/${file.id}/${page}/words?find=${encodeURIComponent(words)}`))
          .then((reply) => (reply.ok ? reply.json() : { boxes: [] }))
          .then(({ boxes }) => { found.set(key, boxes); if (boxes.length) mark(); })
          .catch(() => found.delete(key)); // the server was away: asked again when the page is drawn again
      }
      return found.get(key).map((area) => ({ href: link.href, page, box: area, label: words }));
    });
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
