/* Pages about pairs of regions. Expects `R`'s cluster, lag, timeline, cut and phases to have the documented form, and PHASE_WORDS
   (phase → what stands above its stretch of a time chart) from the script after it. */
const regions = R.cluster.regions.map(r => r.name);
const city = Object.fromEntries(R.cluster.regions.map(r => [r.name, r.city]));
const links = R.cluster.one_way_ms.map(l => l.between);
const hue = (a, b) => `var(--l${Math.max(0, links.findIndex(l => l.includes(a) && l.includes(b))) % 6})`;
const dashed = (a, b) => regions.indexOf(a) > regions.indexOf(b);
const pairs = R.lag.map(l => ({key: `${l.from}>${l.to}`, label: `${l.from} → ${l.to}`, color: hue(l.from, l.to), dash: dashed(l.from, l.to), ...l}));
const hidden = new Set();
function legend(redraw) {
  return h("div", {class: "legend"}, pairs.map(p => {
    const b = h("button", {type: "button", "aria-pressed": "true", title: "show or hide"}, swatch(p), p.label);
    b.addEventListener("click", () => {
      hidden.has(p.key) ? hidden.delete(p.key) : hidden.add(p.key);
      document.querySelectorAll(`[data-pair="${p.key}"]`).forEach(x => x.setAttribute("aria-pressed", String(!hidden.has(p.key))));
      redraws.forEach(f => f());
    });
    b.dataset.pair = p.key;
    return b;
  }));
}

function cdfChart() {
  const known = pairs.filter(p => p.samples);
  const max = 1.12 * Math.max(1, ...known.map(p => Math.min(p.p99_ms ?? p.max_ms, Math.max(3.2 * p.emulated_ms + 60, 2.5 * (p.p50_ms ?? 0)))), ...pairs.map(p => p.emulated_ms * 1.3));
  const label = "Cumulative distribution of replication lag per pair: " + known.map(p => `${p.label} median ${ms(p.p50_ms)}, 99th percentile ${ms(p.p99_ms)}, emulated delay ${ms(p.emulated_ms)}`).join("; ");
  return chart(330, label, (g, w, hgt) => {
    const L = 44, T = 26, B = hgt - 40, Rr = w - 12, x = v => L + (Rr - L) * Math.min(v, max) / max, y = f => B - (B - T) * f;
    for (const f of [0, .25, .5, .75, 1]) g.append(s("line", {class: f ? "gridline" : "axis", x1: L, x2: Rr, y1: y(f), y2: y(f)}), s("text", {x: L - 8, y: y(f) + 4, "text-anchor": "end"}, Math.round(f * 100) + "%"));
    for (const v of ticks(max, w < 560 ? 4 : 8)) g.append(s("text", {x: x(v), y: B + 18, "text-anchor": "middle"}, v));
    g.append(s("text", {x: Rr, y: B + 34, "text-anchor": "end"}, "lag in ms: write due → seen by a watcher"));
    const delays = R.cluster.one_way_ms.filter(l => l.ms > 0), at = delays.map(l => x(l.ms)).sort((a, b) => a - b), tight = at.some((v, i) => i && v - at[i - 1] < 112);
    let free = 0;  // from where on a label meets no other; what has none stands in the table
    for (const l of delays.sort((a, b) => a.ms - b.ms)) {
      const c = hue(...l.between), text = tight ? String(l.ms) : `${l.between.join("–")} delay ${l.ms}`, half = 3.6 * text.length;
      g.append(s("line", {x1: x(l.ms), x2: x(l.ms), y1: T - 4, y2: B, stroke: c, "stroke-width": 1.5, "stroke-dasharray": "2 3"}));
      if (x(l.ms) - half < free) continue;
      g.append(s("text", {x: x(l.ms), y: T - 10, "text-anchor": "middle", style: `fill:${c};font-weight:600`}, text));
      free = x(l.ms) + half + 3;
    }
    for (const p of known) if (!hidden.has(p.key)) {
      const pts = [[x(p.cdf[0][0]), y(0)], ...p.cdf.filter(c => c[0] <= max).map(c => [x(c[0]), y(c[1])])];
      pts.push([Rr, pts[pts.length - 1][1]]);
      g.append(lineOf(p, pathOf(pts)));
    }
    return {left: L, right: Rr, top: T, bottom: B, at: px => {
      const v = (px - L) / (Rr - L) * max;
      return h("div", {}, h("b", {}, `within ${v.toFixed(max < 10 ? 2 : 0)} ms`), h("table", {}, known.filter(p => !hidden.has(p.key)).map(p => {
        const at = p.cdf.filter(c => c[0] <= v).pop();
        return h("tr", {}, h("td", {}, swatch(p), p.label), h("td", {class: "n"}, ((at ? at[1] : 0) * 100).toFixed(1) + "%"));
      })));
    }};
  });
}

function timeChart(field, height, log, unit, label) {
  const T0 = R.timeline.t_s, end = T0.length ? T0[T0.length - 1] : 1;
  const all = pairs.flatMap(p => R.timeline.pairs[p.key][field].filter(v => v != null));
  const marked = [1, 2, 5].flatMap(k => [-2, -1, 0, 1, 2, 3, 4, 5].map(e => +(k * 10 ** e).toPrecision(1))).sort((a, b) => a - b);
  const top = Math.max(...all, log ? 0.1 : 1), low = Math.min(...all.filter(v => v > 0)), lo = marked.filter(v => v <= low).pop() ?? 20, hi = Math.max(lo * 20, top * 1.3);
  return chart(height, label, (g, w, hgt) => {
    const L = 58, T = 24, B = hgt - 26, Rr = w - 12, x = t => L + (Rr - L) * t / end;
    const y = log ? v => B - (B - T) * Math.log(Math.max(v, lo) / lo) / Math.log(hi / lo) : v => B - (B - T) * v / (top * 1.08);
    const marks = log ? marked.filter(v => v >= lo && v <= hi) : ticks(top * 1.08, 4);
    const wide = log && marks.length > 7 ? marks.filter(v => /^[15]/.test(String(v))) : marks;
    for (const v of wide) g.append(s("line", {class: "gridline", x1: L, x2: Rr, y1: y(v), y2: y(v)}), s("text", {x: L - 8, y: y(v) + 4, "text-anchor": "end"}, log ? (v >= 1000 ? v / 1000 + " s" : v + " ms") : v.toLocaleString("en")));
    if (R.cut) {
      const a = x(R.cut.start_s), b = x(R.cut.end_s);
      g.append(s("rect", {x: a, y: T, width: Math.max(1, b - a), height: B - T, fill: "var(--shade)"}),
        ...[a, b].map(v => s("line", {x1: v, x2: v, y1: T, y2: B, stroke: "var(--shade-line)", "stroke-width": 1})),
        s("text", {x: (a + b) / 2, y: T - 8, "text-anchor": "middle", style: "fill:var(--shade-line);font-weight:600"}, `${R.cut.region} cut off`));
    }
    for (const p of R.phases) if (p.name in PHASE_WORDS) {
      const a = x(p.name === "heal" && R.cut ? R.cut.end_s : p.start_s), b = x(Math.min(end, p.end_s)), word = PHASE_WORDS[p.name];
      if (b - a > word.length * 6.2) g.append(s("text", {x: (a + b) / 2, y: T - 8, "text-anchor": "middle"}, word));
      g.append(s("line", {class: "axis", x1: b, x2: b, y1: T, y2: B}));
    }
    for (const v of ticks(end, w < 560 ? 4 : 10)) g.append(s("text", {x: x(v), y: B + 18, "text-anchor": "middle"}, v + " s"));
    g.append(s("line", {class: "axis", x1: L, x2: Rr, y1: B, y2: B}));
    for (const p of pairs) if (!hidden.has(p.key)) {
      let run = [];
      const flush = () => { if (run.length > 1) g.append(lineOf(p, pathOf(run))); run = []; };
      R.timeline.pairs[p.key][field].forEach((v, i) => v == null ? flush() : run.push([x(T0[i]), y(v)]));
      flush();
    }
    return {left: L, right: Rr, top: T, bottom: B, at: px => {
      const i = Math.max(0, Math.min(T0.length - 1, Math.round((px - L) / (Rr - L) * end / R.timeline.step_s) - 1)), t = T0[i];
      if (t == null) return null;
      return h("div", {}, h("b", {}, t.toFixed(1) + " s"), h("table", {}, pairs.filter(p => !hidden.has(p.key)).map(p => {
        const v = R.timeline.pairs[p.key][field][i];
        return h("tr", {}, h("td", {}, swatch(p), p.label), h("td", {class: "n"}, log ? ms(v) : `${int(v)} ${unit}`));
      })));
    }};
  });
}
