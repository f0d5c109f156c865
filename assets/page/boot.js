// Runs before the first paint: language and theme must be right at once. Kept small and without imports.
(() => {
  const read = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const wanted = read("qv.language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  const root = document.documentElement;
  root.dataset.language = wanted;
  // Gradio writes the browser's language there, when it knows it: ours is what the page is in.
  const say = () => { const lang = root.dataset.language === "zh" ? "zh-CN" : "en"; if (root.lang !== lang) root.lang = lang; };
  say();
  new MutationObserver(say).observe(root, { attributes: true, attributeFilter: ["lang", "data-language"] });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const mode = read("qv.theme") || "auto";
    const isDark = mode === "dark" || (mode === "auto" && dark.matches);
    root.classList.toggle("qv-dark", isDark);
    root.style.colorScheme = isDark ? "dark" : "light";
    document.body?.classList.toggle("dark", isDark); // Gradio's own class, for its toasts
  };
  paint();
  dark.addEventListener("change", paint);
  addEventListener("DOMContentLoaded", paint);
  window.qvPaint = paint;
})();
