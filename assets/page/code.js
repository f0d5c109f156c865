// Code in an answer: copy, download, and for HTML a preview that can reach nothing.

import { add, fill, h, icon, iconButton, t } from "./dom.js";

const ENDINGS = { html: "html", svg: "svg", xml: "xml", json: "json", python: "py", javascript: "js", css: "css", markdown: "md", csv: "csv", drawio: "drawio", latex: "tex" };

// The page inside has an origin of its own and may load nothing: no request can carry the chat away.
const WALLS = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; media-src data: blob:; form-action 'none'; base-uri 'none'";

export function codeBlock(name, body, isLive) {
  const language = name.split(/[\s{]/)[0].toLowerCase().slice(0, 20);
  const code = h("code", {}, body);
  const pre = h("pre", { tabindex: 0 }, code);
  let source = body;
  const block = h("div.qv-code", {},
    h("div.qv-code-head", {},
      h("span", {}, language || t("code")),
      h("span.qv-grow"),
      language === "html" && previewButton(),
      iconButton("download", "download", () => download(`answer.${ENDINGS[language] || "txt"}`, source)),
      iconButton("copy", "copy", (event) => copy(source, event.currentTarget))),
    pre);
  block.qvGrow = (next) => {
    if (next.name !== name || !next.body.startsWith(source)) return false;
    code.append(next.body.slice(source.length));
    source = next.body;
    return true;
  };

  function previewButton() {
    const button = h("button.qv-small", { type: "button", t: "preview", onclick: toggle });
    return button;
    function toggle() {
      const open = block.querySelector(".qv-preview");
      if (open) { open.remove(); pre.hidden = false; button.textContent = t("preview"); return; }
      const holder = h("div.qv-preview");
      const draw = (scripts) => {
        const frame = h("iframe", { title: t("preview"), sandbox: scripts ? "allow-scripts" : "", referrerpolicy: "no-referrer" });
        frame.srcdoc = `<meta http-equiv="Content-Security-Policy" content="${WALLS}">${source}`;
        fill(holder, h("label.qv-check", {}, h("input", { type: "checkbox", checked: scripts, onchange: (event) => draw(event.target.checked) }), t("run_scripts")), frame);
      };
      draw(false);
      pre.hidden = true;
      button.textContent = t("code");
      add(block, [holder]);
    }
  }
  return block;
}

export function download(name, text, type = "text/plain") {
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const anchor = h("a", { href: url, download: name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** To the clipboard, evidence links as their words; also where the page is not served over https. */
export async function copy(text, button) {
  const words = text.replace(/\[((?:[^\][]|\[[^\]]*\])*)\]\(#qv\?[^)]*\)/g, "$1").replace(/\u2060/g, "").replace(/&#(\d{2,5});/g, (whole, code) => String.fromCodePoint(Number(code)));
  try {
    await navigator.clipboard.writeText(words);
  } catch {
    const area = h("textarea", { value: words, style: { position: "fixed", opacity: 0 } });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  if (!button) return;
  const before = button.firstChild;
  button.replaceChildren(icon("check"));
  setTimeout(() => button.replaceChildren(before), 1400);
}
