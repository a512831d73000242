/* What all pages share: elements, tables, charts. `R` is the report. */
const R = JSON.parse(document.getElementById("report").textContent);
const int = n => n == null ? "unknown" : Math.round(n).toLocaleString("en");
const ms = x => x == null ? "unknown" : x >= 10000 ? (x / 1000).toFixed(1) + " s" : x >= 1000 ? (x / 1000).toFixed(2) + " s" : x >= 100 ? Math.round(x) + " ms" : x.toFixed(x < 10 ? 2 : 1) + " ms";
const sec = x => x == null ? "unknown" : x.toFixed(1) + " s";
const SVG = "http://www.w3.org/2000/svg";
function h(tag, props, ...kids) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props || {})) {
    if (k === "style") e.style.cssText = v; else if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (k === "class") e.className = v; else e.setAttribute(k, v);
  }
  e.append(...kids.flat(9).filter(x => x != null && x !== false));
  return e;
}
function s(tag, props, ...kids) {
  const e = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(props || {})) e.setAttribute(k, v);
  e.append(...kids.flat(9).filter(x => x != null));
  return e;
}
function table(head, rows, numeric, wide) {
  const cls = i => numeric && numeric.includes(i) ? {class: "n"} : {};
  return h("div", {class: wide ? "scroll wide" : "scroll"}, h("table", {}, h("thead", {}, h("tr", {}, head.map((x, i) => h("th", {scope: "col", ...cls(i)}, x)))),
    h("tbody", {}, rows.map(r => h("tr", {}, r.map((x, i) => h("td", cls(i), x)))))));
}
const swatch = p => h("i", {class: "swatch" + (p.dash ? " dash" : ""), style: `border-color:${p.color}`});
/* -- charts: one function draws at the width it finds, and again when that changes -- */
const redraws = [];
function chart(height, label, draw) {
  const tip = h("div", {class: "tip", role: "status"}), box = h("div", {class: "chart", tabindex: "0"}, tip);
  let svg = null, width = 0;
  const paint = () => {
    if (!width) return;
    const fresh = s("svg", {height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label});
    const probe = draw(fresh, width, height);
    const cursor = s("line", {class: "axis", y1: probe.top, y2: probe.bottom, stroke: "currentColor", visibility: "hidden"});
    fresh.append(cursor);
    const show = px => {
      const x = Math.min(probe.right, Math.max(probe.left, px)), content = probe.at(x);
      if (!content) return hide();
      cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.setAttribute("visibility", "visible");
      tip.replaceChildren(content); tip.style.display = "block"; last = x;
      tip.style.left = Math.max(0, x + 14 + tip.offsetWidth > width ? x - 14 - tip.offsetWidth : x + 14) + "px"; tip.style.top = "8px";
    };
    let last = (probe.left + probe.right) / 2;
    const hide = () => { tip.style.display = "none"; cursor.setAttribute("visibility", "hidden"); };
    fresh.addEventListener("pointermove", e => show(e.clientX - fresh.getBoundingClientRect().left));
    fresh.addEventListener("pointerleave", hide);
    box.onblur = hide;
    box.onkeydown = e => { const d = {ArrowLeft: -6, ArrowRight: 6}[e.key]; if (d) { e.preventDefault(); show(last + d); } if (e.key === "Escape") hide(); };
    if (svg) svg.replaceWith(fresh); else box.prepend(fresh);
    svg = fresh;
  };
  new ResizeObserver(es => { const w = Math.floor(es[0].contentRect.width); if (w !== width) { width = w; requestAnimationFrame(paint); } }).observe(box);
  redraws.push(paint);
  return box;
}
function ticks(max, count) {
  const raw = max / count, mag = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].map(k => k * mag).find(k => k >= raw);
  const out = []; for (let v = 0; v <= max * 1.0001; v += step) out.push(+v.toFixed(6));
  return out;
}
const pathOf = pts => pts.map((p, i) => (i ? "L" : "M") + p[0].toFixed(1) + " " + p[1].toFixed(1)).join("");
const lineOf = (p, d) => s("path", {d, fill: "none", stroke: p.color, "stroke-width": 2, "stroke-linejoin": "round", ...(p.dash ? {"stroke-dasharray": "6 4"} : {})});

