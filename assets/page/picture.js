// A picture (or a page) with boxes and points drawn where they are; coordinates are 0-1000 of its width and height.

import { fill, h, iconButton, svg, t } from "./dom.js";
import { address } from "./session.js";

const HUES = [252, 158, 24, 330, 198, 92, 290, 48]; // one per label, far apart

/** {element, set(source, width, height), marks(links), open(link)}: an image with an overlay, zoom and pan. */
export function overlay() {
  const image = h("img", { alt: "", decoding: "async", ondragstart: (event) => event.preventDefault() });
  const shapes = svg("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", class: "qv-shapes" });
  const labels = h("div.qv-labels");
  const sheet = h("div.qv-sheet", {}, image, shapes, labels);
  const window_ = h("div.qv-window", { tabindex: 0 }, sheet);
  const legend = h("div.qv-legend");
  const tools = h("div.qv-zoom", {}, iconButton("zoomout", "zoom_out", () => zoomBy(1 / 1.4)), iconButton("zoomin", "zoom_in", () => zoomBy(1.4)), iconButton("fit", "zoom_fit", () => zoomTo(1)));
  const element = h("div.qv-picture", {}, h("div.qv-frame", {}, window_, tools), legend);
  let zoom = 1;
  let links = [];
  let single = null; // href of the one mark shown
  let hidden = new Set();

  /** What is `x`, `y` pixels from the window's corner stays there; the window itself may grow with the sheet. */
  function zoomTo(next, x = window_.clientWidth / 2, y = window_.clientHeight / 2) {
    const before = zoom;
    zoom = Math.max(1, Math.min(next, 8));
    const left = (window_.scrollLeft + x) / before;
    const top = (window_.scrollTop + y) / before;
    sheet.style.width = `${100 * zoom}%`;
    window_.classList.toggle("qv-enlarged", zoom > 1);
    window_.scrollTo(left * zoom - x, top * zoom - y);
  }
  const zoomBy = (factor) => zoomTo(zoom * factor);
  const zoomAt = (event, next) => {
    const place = window_.getBoundingClientRect();
    zoomTo(next, event.clientX - place.left, event.clientY - place.top);
  };
  window_.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomAt(event, zoom * Math.exp(-event.deltaY / 300));
  }, { passive: false });
  window_.addEventListener("dblclick", (event) => zoomAt(event, zoom > 1 ? 1 : 2.4));
  window_.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") zoomBy(1.4);
    if (event.key === "-") zoomBy(1 / 1.4);
    if (event.key === "0") zoomTo(1);
  });
  let grip = null;
  window_.addEventListener("pointerdown", (event) => { if (zoom > 1 && event.pointerType === "mouse") { grip = { x: event.clientX + window_.scrollLeft, y: event.clientY + window_.scrollTop }; window_.setPointerCapture(event.pointerId); } });
  window_.addEventListener("pointermove", (event) => { if (grip) window_.scrollTo(grip.x - event.clientX, grip.y - event.clientY); });
  for (const name of ["pointerup", "pointercancel"]) window_.addEventListener(name, () => { grip = null; });

  function draw() {
    shapes.replaceChildren();
    labels.replaceChildren();
    const names = [...new Set(links.map((link) => link.label || link.words || ""))];
    const hue = (link) => HUES[names.indexOf(link.label || link.words || "") % HUES.length];
    for (const link of links) {
      const name = link.label || link.words || "";
      if (single ? link.href !== single : hidden.has(name)) continue;
      const colour = `hsl(${hue(link)} 85% 55%)`;
      const ground = `hsl(${hue(link)} 60% 36%)`;
      if (link.box) {
        const [x1, y1, x2, y2] = [Math.min(link.box[0], link.box[2]), Math.min(link.box[1], link.box[3]), Math.max(link.box[0], link.box[2]), Math.max(link.box[1], link.box[3])];
        shapes.append(svg("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: "qv-box-shape", style: `--mark:${colour}`, "data-href": link.href }));
        if (name) labels.append(h("span", { style: { left: `${x1 / 10}%`, top: `${y1 / 10}%`, background: ground }, className: y1 < 60 ? "qv-label-in" : "" }, name));
      }
      if (link.point) {
        const [x, y] = link.point;
        labels.append(h("i", { className: "qv-point", style: { left: `${x / 10}%`, top: `${y / 10}%`, background: colour }, dataset: { href: link.href } }));
        if (name) labels.append(h("span", { style: { left: `${x / 10}%`, top: `${y / 10}%`, background: ground }, className: "qv-label-point" }, name));
      }
    }
    legend.hidden = !links.length;
    fill(legend, links.length > 0 && [
      names.map((name) => h("button.qv-legend-item", { type: "button", "aria-pressed": String(!hidden.has(name)),
        onclick: () => { single = null; if (hidden.has(name)) hidden.delete(name); else hidden.add(name); draw(); } },
      h("i", { style: { background: `hsl(${HUES[names.indexOf(name) % HUES.length]} 85% 55%)` } }), name || t("boxes"),
      h("small", {}, String(links.filter((link) => (link.label || link.words || "") === name).length)))),
      single && h("button.qv-small", { type: "button", onclick: () => { single = null; hidden = new Set(); draw(); } }, t("all_marks")),
    ]);
  }

  return {
    element,
    set(path, width, height) {
      const source = address(path);
      if (image.src !== source) image.src = source;
      if (width && height) sheet.style.aspectRatio = `${width} / ${height}`;
    },
    marks(next) { links = next.filter((link) => link.box || link.point); draw(); },
    open(link) {
      const area = link.box || (link.point && [link.point[0] - 60, link.point[1] - 60, link.point[0] + 60, link.point[1] + 60]);
      if (!area) return;
      if (!links.some((each) => each.href === link.href)) links.push({ ...link, words: link.label });
      single = links.length > 1 ? link.href : null;
      hidden.clear();
      draw();
      const share = Math.max(Math.abs(area[2] - area[0]), Math.abs(area[3] - area[1])) / 1000;
      if (share < 0.08) zoomTo(3);
      requestAnimationFrame(() => window_.scrollTo(((area[0] + area[2]) / 2000) * sheet.clientWidth - window_.clientWidth / 2, ((area[1] + area[3]) / 2000) * sheet.clientHeight - window_.clientHeight / 2));
    },
    isEnlarged: () => zoom > 1,
    reset() { single = null; hidden = new Set(); zoomTo(1); },
  };
}

export function picture(file) {
  const view = overlay();
  view.set(`picture/${file.id}.webp?longest=1600`, file.width, file.height);
  return { ...view, close() {} };
}
