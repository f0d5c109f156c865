// A small menu below a button, driven by pointer and keyboard.

import { h, icon } from "./dom.js";

/** `items` are [icon, words, call]. */
export function openMenu(anchor, items) {
  closeMenu();
  const sheet = h("div.qv-menu", { role: "menu" }, items.map(([name, words, call]) =>
    h("button", { type: "button", role: "menuitem", onclick: () => { closeMenu(); anchor.focus(); call(); } }, icon(name, 16), words)));
  const place = anchor.getBoundingClientRect();
  document.body.append(sheet);
  sheet.style.left = `${Math.min(place.left, innerWidth - sheet.offsetWidth - 12)}px`;
  sheet.style.top = `${place.bottom + 4 + sheet.offsetHeight > innerHeight - 12 ? Math.max(12, place.top - sheet.offsetHeight - 4) : place.bottom + 4}px`;
  sheet.firstChild.focus();
  sheet.addEventListener("keydown", (event) => {
    const buttons = [...sheet.children];
    const at = buttons.indexOf(document.activeElement);
    if (event.key === "Tab") { closeMenu(); anchor.focus(); return; } // and from there on, as Tab does
    const next = { ArrowDown: at + 1, ArrowUp: at - 1 + buttons.length, Home: 0, End: buttons.length - 1 }[event.key];
    if (next !== undefined) buttons[next % buttons.length].focus();
    if (event.key === "Escape") { closeMenu(); anchor.focus(); }
    if (next !== undefined || event.key === "Escape") event.preventDefault();
  });
  setTimeout(() => addEventListener("pointerdown", outside), 0);
  function outside(event) {
    if (sheet.contains(event.target)) return;
    removeEventListener("pointerdown", outside);
    sheet.remove();
  }
}

export const closeMenu = () => document.querySelector(".qv-menu")?.remove();
