// What a video carries beside its pictures: subtitles as tracks of the player, and its chapters as a list.

import { clock, fill, h, icon, t } from "./dom.js";
import { address } from "./session.js";
import { saidList } from "./said.js";
import { speechTools } from "./speech.js";

/** Adds tracks and chapters of a file to a player; `seek` goes to a second. Returns {element, ticks, follow, refresh, close}. */
export function tracks(file, video, seek) {
  const note = h("p.qv-tracks-note", { hidden: true });
  const list = h("ol");
  const said = saidList(video, seek);
  const speech = speechTools(file, (path, code) => add(path, [t("speech_label"), languageName(code)].filter(Boolean).join(" · "), code));
  const element = h("div.qv-tracks", {}, speech.element, note, h("details.qv-chapters", { hidden: true }, h("summary", {}, icon("right", 13), h("span"), h("span.qv-dim.qv-chapter-now")), list), said.element);
  const details = element.querySelector("details");
  const now = details.querySelector(".qv-chapter-now");
  const ticks = h("div.qv-ticks");
  let chapters = [];
  let beside = "";
  let first = true;

  load();

  async function load() {
    let known;
    try { known = await (await fetch(address(`media/${file.id}/tracks`))).json(); } catch { return; }
    (known.tracks || []).forEach((track, number) => add(`media/${file.id}/tracks/${number}.vtt`, track.title || languageName(track.language), track.language));
    note.hidden = !known.pictures?.length;
    fill(note, !note.hidden && [icon("warn", 14), h("span", {}, t("picture_subtitles", { kinds: known.pictures.join(", ") }))]);
    draw(known.chapters || []);
    speech.show(known.speech);
  }

  /** The first is shown; the player's own menu switches. */
  function add(path, label, language) {
    const track = h("track", { kind: "subtitles", label: label || t("subtitles"), srclang: (language || "").slice(0, 8), src: address(path) });
    said.watch(track);
    video.append(track);
    track.track.mode = first ? "showing" : "disabled";
    first = false;
  }

  function draw(found) {
    chapters = found.map((chapter) => ({ ...chapter, element: h("button.qv-chapter", { type: "button", onclick: () => seek(chapter.t) }, h("span.qv-stamp", {}, clock(chapter.t)), h("span", {}, chapter.title || "–")) }));
    details.hidden = !chapters.length;
    details.open = chapters.length <= 6;
    details.querySelector("summary span").textContent = t("chapters", { n: chapters.length });
    fill(list, chapters.map((chapter) => h("li", {}, chapter.element)));
    fill(ticks, chapters.filter((chapter) => chapter.t > file.start).map((chapter) => h("i", { style: { left: `${(100 * (chapter.t - file.start)) / file.duration}%` } })));
  }

  return {
    element,
    ticks,
    follow(second) {
      said.follow(second);
      const current = chapters.findLast((chapter) => chapter.t <= second + 0.05);
      for (const chapter of chapters) chapter.element.classList.toggle("qv-shown", chapter === current);
      now.textContent = current ? current.title : "";
    },
    /** Subtitle files that were attached beside the video, some of them later than it. */
    refresh(known) {
      const key = (known.subtitles || []).map((each) => each.id).join();
      if (key === beside) return;
      for (const each of known.subtitles || []) if (!beside.includes(each.id)) add(`media/${file.id}/beside/${each.id}.vtt`, each.name, "");
      beside = key;
    },
    close: speech.close,
  };
}

function languageName(code) {
  if (!code || code === "und") return "";
  try { return new Intl.DisplayNames([document.documentElement.dataset.language], { type: "language" }).of(code) || code; } catch { return code; }
}
