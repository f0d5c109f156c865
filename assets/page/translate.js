// The server's English sentences in Chinese, by template: what stands in a hole is kept, or translated in its turn.

import { SENTENCES } from "./sentences.js";

const literal = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

// The template that says most is asked first: "This is {}." would take every sentence that begins so.
const templates = Object.entries(SENTENCES)
  .map(([english, chinese]) => ({ chinese, size: english.replaceAll("{}", "").length, words: new RegExp(`^${english.split("{}").map(literal).join("(.+?)")}$`, "s") }))
  .sort((a, b) => b.size - a.size);

/** A sentence in Chinese; null when it is none that the server is known to say. */
export function inChinese(sentence) {
  for (const { words, chinese } of templates) {
    const match = words.exec(sentence);
    if (match) return chinese.replace(/\{(\d)\}/g, (_, number) => inChinese(match[number]) ?? match[number]);
  }
  return null;
}
