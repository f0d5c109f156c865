// One listener for every evidence link. While an answer streams, its paragraph is made anew and a link under a pressed
// pointer vanishes before `click`: so the href is kept at pointerdown and opened at pointerup. `click` itself is used
// for the keyboard and for programs only.

import { emit, readLink } from "./session.js";

const SLACK = 8; // pixels a press may wander

let pressed = null;
let opened = 0; // when a pointer opened a link: the click that follows is not a second one

const hrefAt = (target) => target.closest?.("a.qv-cite")?.getAttribute("href");

export function open(href) {
  const link = readLink(href);
  if (link) emit("open", link);
}

document.addEventListener("pointerdown", (event) => {
  const href = event.isPrimary && event.button === 0 ? hrefAt(event.target) : null;
  pressed = href ? { href, x: event.clientX, y: event.clientY, id: event.pointerId } : null;
}, true);

document.addEventListener("pointerup", (event) => {
  const press = pressed;
  pressed = null;
  if (!press || press.id !== event.pointerId) return;
  if (Math.hypot(event.clientX - press.x, event.clientY - press.y) > SLACK) return;
  opened = performance.now();
  open(press.href);
}, true);

document.addEventListener("pointercancel", () => { pressed = null; }, true);

document.addEventListener("click", (event) => {
  const href = hrefAt(event.target);
  if (!href) return;
  event.preventDefault();
  if (event.detail === 0 || performance.now() - opened > 600) open(href);
}, true);
