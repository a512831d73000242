const PHASE_WORDS = {before: R.cut ? "connected" : "", drain: "drains", after: "connected again"};
const C = R.configuration;
const fix = (x, d = 2) => x == null ? "unknown" : (x >= 0 ? "+" : "−") + Math.abs(x).toFixed(Math.abs(x) < 10 ? d : 1) + " ms";
const few = (f, name) => f.unsupported.includes(name) && f.samples ? h("span", {class: "why", title: "too few samples lie beyond it"}, "too few") : ms(f[name + "_ms"]);
const told = pairs.filter(p => p.p50_overhead_ms != null);
const worst = told.reduce((a, p) => !a || p.p50_overhead_ms > a.p50_overhead_ms ? p : a, null);
const slowest = pairs.filter(p => p.p50_ms != null).reduce((a, p) => !a || p.p50_ms > a.p50_ms ? p : a, null);
const emulated = R.cluster.one_way_ms.some(l => l.ms > 0);
const missing = pairs.reduce((n, p) => n + (R.cut ? Object.values(p.phases).reduce((m, f) => m + f.unseen, 0) : p.unseen), 0);
const failures = Object.values(R.generators).reduce((n, g) => n + g.failed, 0);
const samples = pairs.reduce((n, p) => n + p.samples, 0);
const plural = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

function header() {
  const title = missing || failures ? `${missing ? plural(missing, "write") + " never arrived" : ""}${missing && failures ? "; " : ""}${failures ? plural(failures, "write") + " failed" : ""}`
    : worst && emulated ? `At the median, replication adds at most ${ms(worst.p50_overhead_ms)} to the delay between regions.`
    : slowest ? `Half of all writes are readable in every region within ${ms(slowest.p50_ms)}.` : "Too few samples to tell a lag.";
  const cadence = `${int(C.rate)} ${C.type} writes a second in each of ${C.regions.length} regions${C.size == null ? "" : `, ${int(C.size)} bytes each`}${C.batch > 1 ? `, ${int(C.batch)} a commit` : ""}${C.load ? `, under ${int(C.load)} background writes a second each` : ""}`;
  return [
    h("div", {class: "eyebrow"}, `crdtkv ${R.crdtkv} bench lag · ${R.started_at.replace("T", " ").replace("+00:00", " UTC")} · ${C.duration_s} s measured`),
    h("h1", {}, title),
    h("p", {class: "lead"}, `${cadence}. Each was due on a schedule that waits for nobody, and its lag counts from then until it could be read in the other region.`),
    h("p", {}, h("span", {class: "verdict " + (missing || failures ? "no" : "ok")}, h("span", {"aria-hidden": "true"}, missing || failures ? "✗" : "✓"), missing || failures ? "Not everything arrived" : "Every write arrived everywhere"))];
}
function figures() {
  const box = (v, t) => h("div", {class: "card"}, h("b", {}, v), h("span", {}, t));
  const p99 = told.filter(p => p.p99_ms != null).map(p => p.p99_ms - p.emulated_ms), late = Object.values(R.generators).map(g => g.late.p50_ms).filter(x => x != null);
  const drains = R.cut ? R.cut.pairs.filter(p => p.held_back) : [];
  return h("div", {class: "figures"},
    emulated ? box(worst ? fix(worst.p50_overhead_ms) : "unknown", "median on top of the emulated delay, of the worst pair") : box(slowest ? ms(slowest.p50_ms) : "unknown", "median of the slowest pair"),
    emulated ? box(p99.length === told.length && p99.length ? fix(Math.max(...p99)) : "too few", "99th percentile on top, of the worst pair")
      : box(pairs.every(p => p.p99_ms != null) ? ms(Math.max(...pairs.map(p => p.p99_ms))) : "too few", "99th percentile of the slowest pair"),
    box(int(samples), "lags measured, over all pairs"),
    R.cut && box(drains.length ? drains.some(p => p.drain_ms == null) ? "never" : ms(Math.max(...drains.map(p => p.drain_ms))) : "unknown", "after the heal, all that the cut held back had arrived"),
    box(late.length ? ms(Math.max(...late)) : "unknown", "of that is the instrument’s: median from due until sent"));
}
function matrix() {
  const of = (a, b) => pairs.find(p => p.from === a && p.to === b), local = r => R.local.find(l => l.region === r);
  const top = Math.max(0.001, ...pairs.map(p => p.p50_overhead_ms ?? p.p50_ms ?? 0));
  const cell = (strong, small, share) => h("div", {style: `position:relative;padding:8px 10px;border-radius:8px;text-align:right;min-width:96px${share == null ? "" : `;background:color-mix(in srgb, var(--l1) ${Math.round(4 + 30 * Math.max(0, share))}%, transparent)`}`},
    h("b", {style: "display:block;white-space:nowrap"}, strong), h("span", {class: "why", style: "white-space:nowrap"}, small));
  return [h("h2", {}, "Every pair"),
    h("p", {class: "note"}, emulated ? "The median, and how much of it is on top of the emulated one-way delay; the stronger the colour, the more. The diagonal is one region alone: due until its own watcher has it." : "The median, and the 99th percentile; the stronger the colour, the slower. The diagonal is one region alone: due until its own watcher has it."),
    h("div", {class: "card"}, h("div", {class: "scroll"}, h("table", {style: "width:auto"}, h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "written in ↓ read in →"), regions.map(r => h("th", {scope: "col", class: "n", style: "padding-right:16px"}, r)))),
      h("tbody", {}, regions.map(a => h("tr", {}, h("th", {scope: "row", style: "border-bottom:0;vertical-align:middle"}, a), regions.map(b => h("td", {style: "border:0;padding:3px 6px 3px 0"}, a === b ? cell(few(local(a), "p50"), "local", null)
        : cell(few(of(a, b), "p50"), !emulated ? ["p99 ", few(of(a, b), "p99")] : `${of(a, b).emulated_ms} ms ${fix(of(a, b).p50_overhead_ms)}`, (of(a, b).p50_overhead_ms ?? of(a, b).p50_ms ?? 0) / top)))))))))];
}
function distribution() {
  const names = [["p50", "p50"], ["p90", "p90"], ["p99", "p99"], ["p99_9", "p99.9"], ["p99_99", "p99.99"]];
  return [h("h2", {}, emulated ? "Lag beside the emulated delay" : "Lag"),
    h("p", {class: "note"}, `${R.clock.meaning}${emulated ? " No write can be read before its dotted line." : ""}${R.cut ? " Writes that the cut held back are not among these." : ""}`),
    h("div", {class: "card"}, legend(), cdfChart(), h("div", {style: "height:14px"}),
      table(["written in → read in", "emulated", ...names.map(n => n[1]), "max", "p50 on top", "samples", "never arrived"],
        pairs.map(p => [[swatch(p), p.label], p.emulated_ms == null ? "unknown" : `${p.emulated_ms} ms`, ...names.map(n => few(p, n[0])), ms(p.max_ms), fix(p.p50_overhead_ms), int(p.samples), int(p.unseen)]), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], true),
      h("p", {class: "note", style: "margin:14px 0 0;font-size:13px"}, `A percentile is told only if at least ${R.percentiles_need_beyond} samples lie beyond it.`))];
}
function overTime() {
  return [h("h2", {}, "Over time"),
    h("p", {class: "note"}, R.cut ? "The median by when a write was due: none across the cut, where it is unknown. Below, seen from outside, the age of the oldest write that a region did not have, and how many commits it lacked." : "The median by when a write was due; the age of the oldest write that a region did not have yet; and how many commits it lacked."),
    h("div", {class: "card"}, legend(), h("h3", {}, "Median lag"), timeChart("p50_ms", 240, true, "", "Median lag per pair over the run"),
      h("h3", {style: "margin-top:18px"}, "Age of the oldest write not yet there"), timeChart("behind_ms", 240, true, "", "Age of the oldest write not yet there per pair over the run"),
      h("h3", {style: "margin-top:18px"}, "Acknowledged commits not yet there"), timeChart("backlog", 170, false, "commits", "Backlog of commits per pair over the run"))];
}
function cutSection() {
  if (!R.cut) return null;
  const names = {before: "before", cut: "in the cut", drain: "while draining", after: "after"};
  return [h("h2", {}, "The cut, and how it drained"),
    h("p", {class: "note"}, `${R.cut.region} was cut off for ${sec(R.cut.end_s - R.cut.start_s)}. Time to drain counts from the order to heal, so it includes finding each other again.`),
    h("div", {class: "split"},
      h("div", {class: "card"}, h("h3", {}, "What was held back"), table(["pair", "commits", "drained in", "writes/s"], R.cut.pairs.map(p => [`${p.from} → ${p.to}`, int(p.held_back), p.held_back ? p.drain_ms == null ? "never" : ms(p.drain_ms) : "nothing", p.writes_per_s == null ? "" : int(p.writes_per_s)]), [1, 2, 3])),
      h("div", {class: "card"}, h("h3", {}, "Median by when it was due"), table(["pair", ...Object.values(names)], pairs.map(p => [[swatch(p), p.label], ...Object.keys(names).map(n => p.phases[n].known ? p.phases[n].samples ? few(p.phases[n], "p50") : "" : "unknown")]), [1, 2, 3, 4])))];
}
function comparison() {
  const c = R.comparison; if (!c) return null;
  const tone = v => h("b", {style: v === "slower" ? "color:var(--bad)" : v === "faster" ? "color:var(--good)" : ""}, v);
  return [h("h2", {}, "Since the earlier run"),
    h("p", {class: "note"}, `Against the run of ${c.against.started_at.replace("T", " ").replace("+00:00", " UTC")} (crdtkv ${c.against.crdtkv}).`),
    h("div", {class: "card"},
      c.configuration.length ? h("p", {}, h("b", {}, "Not the same: "), c.configuration.map(x => `${x.name} was ${x.old}, is ${x.new}`).join("; ")) : null,
      table(["pair", "", "old", "new", "change", "99 % interval", "verdict"], c.pairs.flatMap(p => ["p50", "p99"].map(n => [n === "p50" ? `${p.from} → ${p.to}` : "", n, ms(p[n].old_ms), ms(p[n].new_ms), fix(p[n].difference_ms), p[n].low_ms == null ? "" : `${fix(p[n].low_ms)} … ${fix(p[n].high_ms)}`, tone(p[n].verdict)])), [2, 3, 4, 5], true),
      h("p", {class: "note", style: "margin:14px 0 0;font-size:13px"}, c.rule))];
}
function instrument() {
  return [h("h2", {}, "The instrument itself"),
    h("p", {class: "note"}, "From when a write was due until this process sent it, and until its answer was back. All of it is within the lag above: if “sent” is long, the machine was too busy to measure well."),
    h("div", {class: "card"}, table(["region", "sent p50", "p99", "max", "answered p50", "p99", "max", "commits", "failed"], Object.entries(R.generators).map(([r, g]) => [h("b", {}, r), few(g.late, "p50"), few(g.late, "p99"), ms(g.late.max_ms), few(g.answered, "p50"), few(g.answered, "p99"), ms(g.answered.max_ms), int(g.acknowledged), int(g.failed)]), [1, 2, 3, 4, 5, 6, 7, 8]),
      ...Object.entries(R.generators).filter(([, g]) => g.first_error).map(([r, g]) => h("p", {class: "note", style: "margin:10px 0 0"}, `${r}, first failure: ${g.first_error}`)))];
}
function foot() {
  const e = R.environment, shown = Object.entries(C).filter(([, v]) => v != null && v !== false && v !== "");
  return h("footer", {}, h("p", {}, shown.map(([k, v]) => `${k} ${Array.isArray(v) ? v.join(",") : v}`).join(" · ")),
    h("p", {}, `${e.system}, ${e.cores} cores, load ${e.load_1min_before} before; Python ${e.python}, ${Object.entries(e.versions).map(([k, v]) => `${k} ${v}`).join(", ")}. results.json beside this page has every number and the histograms.`),
    h("p", {}, R.cluster.source));
}
document.getElementById("main").replaceChildren(...[header(), figures(), comparison(), matrix(), distribution(), overTime(), cutSection(), instrument(), foot()].flat(9).filter(Boolean));
