// The sentence of a text that a citation stands in.

// A full stop behind these ends no sentence: always ("e.g." too, by its last letter), or where a number follows.
const ABBREVIATED = /(?:^|[^\p{L}\p{N}])(?:[a-z]|cf|vs|mr|mrs|ms|dr|prof|st|incl|excl|approx)$/iu;
const NUMBERED = /(?:^|[^\p{L}\p{N}])(?:pp|nos?|figs?|tab|secs?|art|para|ch|chap|vol|eq|ca|ll|col|cl)$/iu;
const STOP = /(?:[。！？!?；]+|\.+(?=["'”’)\]]*(?:\s|$))|\n)["'”’)\]」』]*/g;

/** Where each sentence ends: indexes just behind its last mark. */
function ends(text) {
  const found = [];
  for (const { 0: mark, index } of text.matchAll(STOP)) {
    const before = text.slice(Math.max(0, index - 12), index);
    const numbered = /^\s*[\d#§]/.test(text.slice(index + 1));
    if (mark[0] === "." && mark[1] !== "." && (ABBREVIATED.test(before) || (numbered && NUMBERED.test(before)))) continue;
    found.push(index + mark.length);
  }
  return found;
}

/** The sentence around `text[start:end]`, without the marks at its rims; the one before, where that says nothing else. */
export function sentenceAround(text, start, end) {
  const stops = ends(text);
  const earlier = stops.filter((stop) => stop <= start);
  let from = earlier.pop() ?? 0;
  const to = stops.find((stop) => stop >= end) ?? text.length;
  if (!/[\p{L}\p{N}]/u.test(text.slice(from, start) + text.slice(end, to))) from = earlier.pop() ?? 0;
  return text.slice(from, to).trim().replace(/^[\s:：,，\-–—•]+|[\s:：,，;；\-–—]+$/g, "");
}
