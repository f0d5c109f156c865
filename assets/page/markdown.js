// Markdown to elements. Every node is made with createElement and textContent: raw HTML of the model is shown as the
// text it is, pictures are never loaded, links lead to known evidence or, opened by hand, to http(s).
//
// A growing answer is cheap: blocks whose source did not change keep their elements, the last one becomes what it has grown to.

import { h, icon, t } from "./dom.js";
import { readLink } from "./session.js";
import { codeBlock } from "./code.js";
import { math } from "./math.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+|$)(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** The blocks of a text: [{kind, source, ...}]. */
function split(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  const take = (kind, end, more) => { blocks.push({ kind, source: lines.slice(at, end).join("\n"), ...more }); at = end; };
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) { at++; continue; }
    const fence = FENCE.exec(line);
    if (fence) {
      let end = at + 1;
      const closing = new RegExp(`^ {0,3}\\${fence[2][0]}{${fence[2].length},}\\s*$`);
      while (end < lines.length && !closing.test(lines[end])) end++;
      const body = lines.slice(at + 1, end).map((each) => each.startsWith(fence[1]) ? each.slice(fence[1].length) : each);
      take("code", Math.min(end + 1, lines.length), { name: fence[3].trim(), body: body.join("\n"), closed: end < lines.length });
      continue;
    }
    const dollars = /^\s*(\$\$|\\\[)/.exec(line);
    if (dollars) {
      const mark = dollars[1] === "$$" ? "$$" : "\\]";
      let end = at;
      while (end < lines.length && !lines[end].slice(end === at ? dollars[0].length : 0).includes(mark)) end++;
      if (end < lines.length && lines[end].trim().endsWith(mark)) {
        const source = lines.slice(at, end + 1).join("\n").trim();
        take("math", end + 1, { body: source.slice(2, -2) });
        continue;
      }
    }
    const heading = HEADING.exec(line);
    if (heading) { take("heading", at + 1, { level: heading[1].length, body: heading[2] }); continue; }
    if (RULE.test(line)) { take("rule", at + 1); continue; }
    if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DIVIDER.test(lines[at + 1])) {
      let end = at + 2;
      while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end++;
      take("table", end);
      continue;
    }
    if (QUOTE.test(line)) {
      let end = at;
      while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !startsBlock(lines[end]))) end++;
      take("quote", end, { body: lines.slice(at, end).map((each) => QUOTE.exec(each)?.[1] ?? each).join("\n") });
      continue;
    }
    if (ITEM.test(line)) {
      let end = at + 1;
      while (end < lines.length) {
        if (lines[end].trim()) {
          if (!ITEM.test(lines[end]) && !/^\s/.test(lines[end]) && (!lines[end - 1].trim() || startsBlock(lines[end]))) break;
          end++;
        } else if (end + 1 < lines.length && (ITEM.test(lines[end + 1]) || /^\s{2,}\S/.test(lines[end + 1]))) end++;
        else break;
      }
      take("list", end);
      continue;
    }
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !startsBlock(lines[end])) end++;
    take("paragraph", end);
  }
  return blocks;
}

const startsBlock = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

function make(block, live) {
  switch (block.kind) {
    case "code": return codeBlock(block.name, block.body, live && !block.closed);
    case "math": return h("div.qv-math", {}, math(block.body, true));
    case "heading": return h(`h${Math.min(6, block.level + 1)}`, {}, inline(block.body, live));
    case "rule": return h("hr");
    case "quote": return h("blockquote", {}, split(block.body).map((each) => make(each, live)));
    case "table": return table(block.source.split("\n"), live);
    case "list": return list(block.source.split("\n"), live);
    default: return h("p", {}, inline(block.source.replace(/^ +/gm, ""), live));
  }
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(lines, live) {
  const sides = cells(lines[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
  const row = (tag, line) => h("tr", {}, cells(line).map((cell, index) =>
    h(tag, { style: sides[index] ? { textAlign: sides[index] } : {} }, inline(cell, live))));
  return h("div.qv-table", { tabindex: 0, role: "region" }, h("table", {},
    h("thead", {}, row("th", lines[0])),
    h("tbody", {}, lines.slice(2).map((line) => row("td", line)))));
}

function list(lines, live) {
  const first = ITEM.exec(lines[0]);
  const indent = first[1].length;
  const ordered = /\d/.test(first[2]);
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent + 1) items.push([item[3]]);
    else items[items.length - 1].push(line);
  }
  const loose = lines.some((line) => !line.trim());
  const elements = items.map((body) => {
    const inner = body.slice(1);
    const depth = Math.min(...inner.filter((line) => line.trim()).map((line) => /^\s*/.exec(line)[0].length), 99);
    const text = [body[0], ...inner.map((line) => line.slice(depth === 99 ? 0 : depth))].join("\n");
    const task = /^\[([ xX])\]\s+/.exec(text);
    const blocks = split(task ? text.slice(task[0].length) : text);
    const content = blocks.map((each) => (each.kind === "paragraph" && !loose ? inline(each.source, live) : make(each, live)));
    return h(task ? "li.qv-task" : "li", {}, task && h("input", { type: "checkbox", disabled: true, checked: task[1] !== " " }), content);
  });
  return ordered ? h("ol", { start: parseInt(first[2], 10) }, elements) : h("ul", {}, elements);
}

// Inside a block ------------------------------------------------------------------------------------------------------

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const SPECIAL = /[\\`*_~[\]!$<&h\n]/g;

/** Nodes of a line of text. `live`: an emphasis that is not closed yet reaches to the end. */
export function inline(text, live = false) {
  const nodes = [];
  let plain = "";
  const flush = () => { if (plain) { nodes.push(plain); plain = ""; } };
  const push = (node) => { flush(); nodes.push(node); };
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text);
    if (!next) { plain += text.slice(at); break; }
    plain += text.slice(at, next.index);
    at = next.index;
    const rest = text.slice(at);
    const step = special(rest, text[at - 1] || "", live);
    if (step) { if (step.node !== undefined) push(step.node); else plain += step.text; at += step.length; }
    else { plain += text[at]; at++; }
  }
  flush();
  return nodes;
}

function special(rest, before, live) {
  let match;
  switch (rest[0]) {
    case "\\":
      if ((match = /^\\\(([\s\S]+?)\\\)/.exec(rest))) return { node: math(match[1], false), length: match[0].length };
      if (rest[1] === "\n") return { node: h("br"), length: 2 };
      return /[!-/:-@[-`{-~]/.test(rest[1] || "") ? { text: rest[1], length: 2 } : null;
    case "`":
      match = /^(`+)([\s\S]*?[^`])\1(?!`)/.exec(rest);
      return match && { node: h("code", {}, match[2].replace(/^ (.+) $/, "$1")), length: match[0].length };
    case "\n": return { node: h("br"), length: 1 };
    case "<":
      if ((match = /^<br\s*\/?>/i.exec(rest))) return { node: h("br"), length: match[0].length };
      if ((match = /^<(https?:\/\/[^\s<>]+)>/.exec(rest))) return { node: outside(match[1], [match[1]]), length: match[0].length };
      return null;
    case "&":
      match = /^&(?:#(\d{2,6})|(\w{2,5}));/.exec(rest);
      if (match?.[1] && Number(match[1]) <= 0x10ffff) return { text: String.fromCodePoint(Number(match[1])), length: match[0].length };
      return match?.[2] && Object.hasOwn(ENTITIES, match[2]) ? { text: ENTITIES[match[2]], length: match[0].length } : null;
    case "$":
      match = /^\$\$([^$]+)\$\$/.exec(rest) || /^\$(?![\s\d])([^$\n]*[^$\s\\])\$(?!\d)/.exec(rest) || /^\$(\d[^$\n]*[\\^_{=][^$\n]*)\$(?!\d)/.exec(rest);
      return match && { node: math(match[1], false), length: match[0].length };
    case "!":
      match = rest[1] === "[" && bracket(rest, 1);
      return match ? { node: h("span.qv-left-out", {}, icon("image", 14), t("picture_left_out", { name: match.label || match.href })), length: match.length } : null;
    case "[":
      match = bracket(rest, 0);
      return match ? { node: link(match, live), length: match.length } : null;
    case "*": case "_": case "~": return emphasis(rest, before, live);
    case "h":
      match = !/\w/.test(before) && /^https?:\/\/[^\s<>"'`，。；、）】]+/.exec(rest);
      if (!match) return null;
      match = match[0].replace(/[.,;:!?*_)]+$/, "");
      return { node: outside(match, [match]), length: match.length };
    default: return null;
  }
}

/** `[label](href "title")` from `start`; brackets in the label may nest. */
function bracket(rest, start) {
  let depth = 0;
  let end = start;
  for (; end < rest.length; end++) {
    if (rest[end] === "\\") end++;
    else if (rest[end] === "[") depth++;
    else if (rest[end] === "]" && --depth === 0) break;
  }
  const match = depth === 0 && /^\]\(\s*<?([^\s)>]*)>?(?:\s+["'][^"']*["'])?\s*\)/.exec(rest.slice(end));
  return match ? { label: rest.slice(start + 1, end), href: match[1], length: end + match[0].length } : null;
}

function link({ label, href }, live) {
  if (href.startsWith("#qv?")) {
    const known = readLink(href);
    const words = inline(label.replace(/^[▣◎▸]\s*/, "") || t("boxes"), live);
    if (!known) return h("span", {}, words);
    const kind = known.box ? "box" : known.point ? "point" : known.t !== undefined ? "time" : "page";
    const short = label.length < 24 ? ".qv-short" : "";
    return h(`a.qv-cite.qv-cite-${kind}${short}`, { href, title: known.file.name }, words);
  }
  if (/^https?:\/\//i.test(href)) return outside(href, inline(label, live));
  return h("span", {}, inline(label, live));
}

function outside(href, words) {
  return h("a.qv-out", { href, target: "_blank", rel: "noopener noreferrer nofollow", title: href }, words);
}

const WORD = /[\p{L}\p{N}]/u;

/** Emphasis, more generous than CommonMark beside Chinese: `在**第47秒**打开` is bold. */
function emphasis(rest, before, live) {
  const mark = /^(\*\*\*|\*\*|\*|___|__|_|~~)/.exec(rest)?.[1];
  if (!mark || /\s/.test(rest[mark.length] || " ")) return null;
  if (mark[0] === "_" && WORD.test(before)) return null;
  let end = mark.length;
  for (; ; end++) {
    end = rest.indexOf(mark, end);
    if (end < 0) break;
    const within = rest.slice(mark.length, end);
    const inCode = (within.match(/`/g) || []).length % 2;
    const longer = mark === "*" && (rest[end + 1] === "*" || rest[end - 1] === "*");
    const inWord = mark[0] === "_" && WORD.test(rest[end + mark.length] || "");
    if (within && !/\s$/.test(within) && !inCode && !longer && !inWord) break;
  }
  if (end < 0 && !(live && mark === "**")) return null;
  const inner = inline(end < 0 ? rest.slice(mark.length) : rest.slice(mark.length, end), live);
  const tag = mark === "~~" ? "del" : mark.length === 1 ? "em" : "strong";
  const node = mark.length === 3 ? h("strong", {}, h("em", {}, inner)) : h(tag, {}, inner);
  return { node, length: end < 0 ? rest.length : end + mark.length };
}

/** Makes `old` look like `next`, and returns what stands in its place. What did not change stays the same node: a link
 *  keeps the focus and a selection its words while the paragraph around them grows. */
function become(old, next) {
  const isKnown = old.nodeName === next.nodeName && !next.matches?.(".qv-code, .qv-formula"); // those have lives of their own
  if (!isKnown || (old.attributes && !old.cloneNode(false).isEqualNode(next.cloneNode(false)))) {
    old.replaceWith(next);
    return next;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (next.data.startsWith(old.data)) old.appendData(next.data.slice(old.data.length));
    else old.data = next.data;
    return old;
  }
  const wanted = [...next.childNodes];
  wanted.forEach((child, index) => {
    const known = old.childNodes[index];
    if (!known) old.append(child);
    else if (!known.isEqualNode(child)) become(known, child);
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
  return old;
}

/** Shows `text` in `element`; elements of unchanged blocks stay. */
export function show(element, text, live = false) {
  const before = element.qvBlocks || [];
  const blocks = split(text);
  blocks.forEach((block, index) => {
    const isLive = live && index === blocks.length - 1;
    const old = before[index];
    if (old && old.source === block.source && old.isLive === isLive && old.version === version) { block.node = old.node; block.isLive = isLive; block.version = version; return; }
    if (old && block.kind === "code" && old.kind === "code" && old.node.qvGrow?.(block, isLive)) block.node = old.node;
    else {
      block.node = make(block, isLive);
      if (old) block.node = become(old.node, block.node);
      else element.append(block.node);
    }
    block.isLive = isLive;
    block.version = version;
  });
  for (const old of before.slice(blocks.length)) old.node.remove();
  element.qvBlocks = blocks;
}

let version = 0;

/** Files became known or the language changed: the next `show` makes every block anew. */
export function forget() { version++; }
