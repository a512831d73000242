const C = R.configuration, T = R.total;
const kinds = R.operations.map((o, i) => ({...o, label: o.operation, color: `var(--l${i % 6})`}));
const few = (f, name) => f.unsupported.includes(name) && f.samples ? h("span", {class: "why", title: "too few samples lie beyond it"}, "too few") : lat(f[name + "_ms"]);
const lat = x => x == null ? "unknown" : x < 1 ? (x * 1000).toFixed(x < 0.01 ? 1 : 0) + " µs" : ms(x);
const many = R.regions.length > 1;
const percent = x => (x * 100).toFixed(x < 0.1 ? 1 : 0) + " %";
const percentiles = [["p50", "p50"], ["p90", "p90"], ["p99", "p99"], ["p99_9", "p99.9"], ["p99_99", "p99.99"]];
const where = {embedded: "a store in the same process", node: "one node", cluster: `${R.regions.length} regions`}[C.target];

function header() {
  const trouble = T.failed > 0, apart = many && R.converged_s == null;
  const title = trouble ? `${int(T.failed)} operations failed` : C.loop === "closed" ? `${int(T.per_s)} operations a second` : `At ${int(C.rate)} operations a second, half take at most ${lat(T.p50_ms)}`;
  const loop = C.loop === "closed" ? `${int(C.callers)} ${C.callers === 1 ? "caller, who waits for each answer" : "callers, each waiting for its answer"}` : "due on a schedule that waits for nobody; time counts from when an operation was due";
  return [h("div", {class: "eyebrow"}, `crdtkv ${R.crdtkv} bench load · ${R.started_at.replace("T", " ").replace("+00:00", " UTC")} · ${C.duration_s} s measured`),
    h("h1", {}, title),
    h("p", {class: "lead"}, `${C.about}. On ${where}, ${C.engine ?? "the node’s engine"}, durability ${C.durability ?? "as the node has it"}; ${loop}.`),
    h("p", {}, h("span", {class: "verdict " + (trouble || apart ? "no" : "ok")}, h("span", {"aria-hidden": "true"}, trouble || apart ? "✗" : "✓"),
      trouble ? `first failure: ${T.first_error}` : many ? apart ? "the regions did not become equal" : `all regions equal ${sec(R.converged_s)} after the last answer` : "nothing failed"))];
}
function figures() {
  const box = (v, t) => h("div", {class: "card"}, h("b", {}, v), h("span", {}, t));
  const conflicts = R.regions.reduce((n, r) => n + (r.conflicts ?? 0), 0);
  return h("div", {class: "figures"}, box(int(T.per_s), "operations a second"), box(few(T, "p50"), "median"), box(few(T, "p99"), "99th percentile"), box(int(T.operations), "operations measured"),
    many && box(int(conflicts), "conflicts in the regions’ journals"),
    R.preload && box(int(R.preload.per_s), `records a second when ${int(R.preload.records)} were written first`),
    T.in_calls_share != null && box(percent(T.in_calls_share), "of the time was in the store, the rest the instrument’s own"));
}
function curve(height, label, series, xs, unit, logarithmic) {
  const all = series.flatMap(p => p.ys.filter(v => v != null)), top = Math.max(...all, 1e-6) * 1.1;
  const marked = [1, 2, 5].flatMap(k => [-3, -2, -1, 0, 1, 2, 3, 4].map(e => +(k * 10 ** e).toPrecision(1))).sort((a, b) => a - b);
  const lo = logarithmic ? marked.filter(v => v <= Math.min(...all.filter(v => v > 0))).pop() ?? 0.001 : 0, hi = Math.max(top, lo * 20);
  return chart(height, label, (g, w, hgt) => {
    const L = 66, top_ = 14, B = hgt - 26, Rr = w - 12, end = C.duration_s, x = t => L + (Rr - L) * t / end;
    const y = logarithmic ? v => B - (B - top_) * Math.log(Math.max(v, lo) / lo) / Math.log(hi / lo) : v => B - (B - top_) * v / top;
    const marks = logarithmic ? marked.filter(v => v >= lo && v <= hi && (hi / lo < 200 || /^[1]|0\.0*1/.test(String(v)))) : ticks(top, 4);
    for (const v of marks) g.append(s("line", {class: "gridline", x1: L, x2: Rr, y1: y(v), y2: y(v)}), s("text", {x: L - 8, y: y(v) + 4, "text-anchor": "end"}, logarithmic ? lat(v).replace(/\.0+ /, " ").replace(".00", "") : v.toLocaleString("en")));
    for (const v of ticks(end, w < 560 ? 4 : 10)) g.append(s("text", {x: x(v), y: B + 18, "text-anchor": "middle"}, v + " s"));
    g.append(s("line", {class: "axis", x1: L, x2: Rr, y1: B, y2: B}));
    for (const p of series) {
      let run = [];
      const flush = () => { if (run.length > 1) g.append(lineOf(p, pathOf(run))); run = []; };
      p.ys.forEach((v, i) => v == null ? flush() : run.push([x(xs[i]), y(v)]));
      flush();
    }
    return {left: L, right: Rr, top: top_, bottom: B, at: px => {
      const i = Math.max(0, Math.min(xs.length - 1, Math.floor((px - L) / (Rr - L) * xs.length)));
      return h("div", {}, h("b", {}, xs[i].toFixed(1) + " s"), h("table", {}, series.map(p => h("tr", {}, h("td", {}, swatch(p), p.label), h("td", {class: "n"}, p.ys[i] == null ? "unknown" : logarithmic ? lat(p.ys[i]) : `${int(p.ys[i])} ${unit}`)))));
    }};
  });
}
function distribution() {
  const known = kinds.filter(k => k.samples), max = 1.15 * Math.max(1e-4, ...known.map(k => Math.min(k.p99_ms ?? k.max_ms, 4 * (k.p90_ms ?? k.max_ms))));
  const picture = chart(300, "Cumulative distribution of the time an operation takes: " + known.map(k => `${k.label} median ${lat(k.p50_ms)}`).join("; "), (g, w, hgt) => {
    const L = 44, top = 14, B = hgt - 40, Rr = w - 12, x = v => L + (Rr - L) * Math.min(v, max) / max, y = f => B - (B - top) * f;
    for (const f of [0, .25, .5, .75, 1]) g.append(s("line", {class: f ? "gridline" : "axis", x1: L, x2: Rr, y1: y(f), y2: y(f)}), s("text", {x: L - 8, y: y(f) + 4, "text-anchor": "end"}, Math.round(f * 100) + "%"));
    for (const v of ticks(max, w < 560 ? 4 : 8)) g.append(s("text", {x: x(v), y: B + 18, "text-anchor": "middle"}, max < 1 ? +(v * 1000).toFixed(2) : v));
    g.append(s("text", {x: Rr, y: B + 34, "text-anchor": "end"}, `${max < 1 ? "µs" : "ms"}, ${C.loop === "closed" ? "call → answer" : "due → answer"}`));
    for (const k of known) { const pts = [[x(k.cdf[0][0]), y(0)], ...k.cdf.filter(c => c[0] <= max).map(c => [x(c[0]), y(c[1])])]; pts.push([Rr, pts[pts.length - 1][1]]); g.append(lineOf(k, pathOf(pts))); }
    return {left: L, right: Rr, top, bottom: B, at: px => { const v = (px - L) / (Rr - L) * max; return h("div", {}, h("b", {}, `within ${lat(v)}`), h("table", {}, known.map(k => { const at = k.cdf.filter(c => c[0] <= v).pop(); return h("tr", {}, h("td", {}, swatch(k), k.label), h("td", {class: "n"}, ((at ? at[1] : 0) * 100).toFixed(1) + "%")); }))); }};
  });
  const rows = kinds.map(k => [[swatch(k), k.label], percent(C.shares[k.operation]), int(k.per_s), ...percentiles.map(p => few(k, p[0])), lat(k.max_ms), int(k.operations), int(k.failed)]);
  return [h("h2", {}, "What an operation takes"),
    h("p", {class: "note"}, C.loop === "closed" ? "From the call to its answer. Callers wait, so a stall of the store is one slow sample for each; what users who do not wait for each other would see, an open loop shows (--rate)." : "From when an operation was due until its answer: a stall shows in full."),
    h("div", {class: "card"}, h("div", {class: "legend"}, known.map(k => h("span", {}, swatch(k), k.label))), picture, h("div", {style: "height:14px"}),
      table(["operation", "share", "a second", ...percentiles.map(p => p[1]), "max", "operations", "failed"], rows, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], true),
      h("p", {class: "note", style: "margin:14px 0 0;font-size:13px"}, `A percentile is told only if at least ${R.percentiles_need_beyond} samples lie beyond it.`))];
}
function overTime() {
  const L = R.timeline, rate = [{label: "operations", color: "var(--l0)", ys: L.per_s}], times = [{label: "p50", color: "var(--l0)", ys: L.p50_ms}, {label: "p99", color: "var(--l1)", ys: L.p99_ms}];
  return [h("h2", {}, "Over time"), h("div", {class: "card"}, h("h3", {}, "Operations a second"), curve(200, "Operations a second over the run", rate, L.t_s, "a second", false),
    h("h3", {style: "margin-top:18px"}, "Time of an operation"), h("div", {class: "legend"}, times.map(p => h("span", {}, swatch(p), p.label))), curve(220, "Median and 99th percentile over the run", times, L.t_s, "", true))];
}
function regions() {
  if (!many) return null;
  return [h("h2", {}, "Every region"), h("div", {class: "card"}, table(["region", "a second", "p50", "p99", "max", "operations", "conflicts in its journal"], R.regions.map(r => [h("b", {}, r.region), int(r.per_s), few(r, "p50"), few(r, "p99"), lat(r.max_ms), int(r.operations), int(r.conflicts)]), [1, 2, 3, 4, 5, 6]))];
}
function foot() {
  const e = R.environment, shown = Object.entries(C).filter(([k, v]) => v != null && v !== false && v !== "" && !["about", "shares"].includes(k));
  return h("footer", {}, h("p", {}, shown.map(([k, v]) => `${k} ${Array.isArray(v) ? v.join(",") : v}`).join(" · ")),
    h("p", {}, `${e.system}, ${e.cores} cores, load ${e.load_1min_before} before; Python ${e.python}, ${Object.entries(e.versions).map(([k, v]) => `${k} ${v}`).join(", ")}. results.json beside this page has every number and the histograms.`));
}
document.getElementById("main").replaceChildren(...[header(), figures(), distribution(), overTime(), regions(), foot()].flat(9).filter(Boolean));
