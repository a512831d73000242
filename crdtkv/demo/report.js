const PHASE_WORDS = {load: "load", edits: "conflicting edits", heal: "healed"};
const words = {2: "Two", 3: "Three", 4: "Four", 5: "Five"};
function mapOfLinks() {
  const w = 460, hgt = 270, at = [[70, 62], [390, 62], [230, 224]], g = s("svg", {viewBox: `0 0 ${w} ${hgt}`, role: "img", "aria-label": "The regions and the delays between them", style: "width:100%;max-width:520px;display:block;margin:auto"});
  const pos = Object.fromEntries(regions.map((r, i) => [r, at[i % 3]]));
  for (const l of R.cluster.one_way_ms) {
    const [a, b] = l.between, p = pos[a], q = pos[b], c = hue(a, b), both = pairs.filter(x => l.between.includes(x.from) && l.between.includes(x.to));
    const mid = [(p[0] + q[0]) / 2, (p[1] + q[1]) / 2], p50 = both.map(x => x.p50_ms == null ? "?" : x.p50_ms.toFixed(0)).join(" / ");
    g.append(s("line", {x1: p[0], y1: p[1], x2: q[0], y2: q[1], stroke: c, "stroke-width": 2.5}),
      s("rect", {x: mid[0] - 75, y: mid[1] - 21, width: 150, height: 40, rx: 8, fill: "var(--card)", stroke: c}),
      s("text", {x: mid[0], y: mid[1] - 4, "text-anchor": "middle", class: "strong"}, `${l.ms} ms one way`), s("text", {x: mid[0], y: mid[1] + 12, "text-anchor": "middle", style: "font-size:11px"}, `measured p50 ${p50}`));
  }
  for (const r of regions) {
    const [x, y] = pos[r];
    g.append(s("circle", {cx: x, cy: y, r: 42, fill: "var(--card)", stroke: "var(--ink)", "stroke-width": 2}), s("text", {x, y: y + 1, "text-anchor": "middle", class: "strong", style: "font-size:17px"}, r), s("text", {x, y: y + 16, "text-anchor": "middle", style: "font-size:10.5px"}, city[r] || ""));
  }
  return g;
}

/* -- sections -- */
const lost = Object.values(R.classification.regions).reduce((n, r) => n + (r.lost || 0), 0);
const failed = R.checks.filter(c => !c.ok);
const digests = [...new Set(Object.values(R.convergence.digests))];
function header() {
  const d = R.dataset, title = R.ok ? `${words[regions.length] || regions.length} regions were cut apart, and are equal again. No write was lost.` : `The demo failed: ${failed.length ? failed[0].name + " — not so" : "it did not finish"}`;
  return [
    h("div", {class: "eyebrow"}, `crdtkv ${R.crdtkv} demo · ${R.started_at.replace("T", " ").replace("+00:00", " UTC")} · took ${sec(R.duration_s)}`),
    h("h1", {}, title),
    h("p", {class: "lead"}, `${int(d.airports)} airports were loaded through the region that owns their continent. Then all regions edited the same ones at once; ${R.cut ? R.cut.region : "one"} was cut off for ${R.cut ? sec(R.cut.end_s - R.cut.start_s) : "a while"} while every side went on writing; and the links were restored. A verifier outside the cluster kept every acknowledged write, and looked for each in every region.`),
    h("p", {}, h("span", {class: "verdict " + (R.ok ? "ok" : "no")}, h("span", {"aria-hidden": "true"}, R.ok ? "✓" : "✗"), R.ok ? `All ${R.checks.length} checks hold` : `${failed.length} of ${R.checks.length} checks failed`)),
    !R.ok && h("ul", {class: "checks card"}, failed.map(checkItem)),
  ];
}
function figures() {
  const caught = R.cut ? Object.values(R.cut.caught_up_after_heal_ms) : [], worst = caught.some(x => x == null) ? null : Math.max(...caught);
  const over = pairs.filter(p => p.p50_ms != null).map(p => p.p50_ms - p.emulated_ms);
  const box = (v, t) => h("div", {class: "card"}, h("b", {}, v), h("span", {}, t));
  return h("div", {class: "figures"},
    box(int(R.writes.acknowledged), "acknowledged writes, each looked for in every region"),
    box(int(lost), lost ? "lost" : "lost, in any region"),
    box(int(R.conflicts.total), `conflicts, each on record; ${int(R.conflicts.adds_that_beat_removes)} adds beat a remove`),
    box(over.length ? "+" + (Math.max(...over)).toFixed(1) + " ms" : "unknown", "at most, by the median, on top of the emulated delay"),
    box(ms(worst), "after the heal, all that the cut held back was visible everywhere"),
    box(R.convergence.settled_s == null ? "never" : ms(R.convergence.settled_s * 1000), "after the last write, all digests were equal"));
}
function lagSection() {
  return [h("h2", {}, "Lag beside the emulated delay"),
    h("p", {class: "note"}, "From the moment a write was due in one region until a watcher saw it in another, on one monotonic clock, while all links were up and every region was editing. No write can be seen before its dotted line."),
    h("div", {class: "card"}, legend(), cdfChart(), h("div", {style: "height:14px"}),
      table(["written in → seen in", "emulated", "p50", "p99", "max", "p50 on top", "writes", "p99 in the load", "in the cut", "after the heal"],
        pairs.map(p => [[swatch(p), p.label], `${p.emulated_ms} ms`, ms(p.p50_ms), ms(p.p99_ms), ms(p.max_ms), p.p50_ms == null ? "unknown" : "+" + (p.p50_ms - p.emulated_ms).toFixed(1) + " ms", int(p.samples),
          p.phases.load ? ms(p.phases.load.p99_ms) : "", p.phases.cut ? (p.phases.cut.known ? ms(p.phases.cut.p99_ms) : "unknown") : "", p.phases.heal ? ms(p.phases.heal.p99_ms) : ""]), [1, 2, 3, 4, 5, 6, 7, 8, 9]))];
}
function timeSection() {
  return [h("h2", {}, "The whole run, from outside"),
    h("p", {class: "note"}, "How old the oldest write was that a region did not have yet, and how many acknowledged commits it lacked. Across the cut a region cannot know either: there the lines are known only to the observer, who stands on both sides, and the nodes themselves say “unknown”."),
    h("div", {class: "card"}, legend(), h("h3", {}, "Age of the oldest write not yet seen"), timeChart("behind_ms", 300, true, "", "Age of the oldest unseen write per pair over the run; it rises during the cut and falls after the heal"),
      h("h3", {style: "margin-top:18px"}, "Acknowledged commits not yet there"), timeChart("backlog", 190, false, "commits", "Backlog of commits per pair over the run"))];
}
function cutSection() {
  const c = R.cut; if (!c) return null;
  const outside = regions.filter(r => r !== c.region);
  return [h("h2", {}, "The cut was real"),
    h("p", {class: "note"}, `Just before the heal, with all writers paused and ${outside.join(" and ")} equal: the sides had different digests, each lacked what the other had acknowledged, and the same reads gave different answers.`),
    h("div", {class: "split"},
      h("div", {class: "card"}, h("h3", {}, "Digests"), table(["region", "before the heal", "in the end"], regions.map(r => [r, h("code", {class: "digest"}, c.digests[r] || ""), h("code", {class: "digest"}, R.convergence.digests[r] || "")]))),
      h("div", {class: "card"}, h("h3", {}, "Acknowledged commits missing across the cut"), table(["in", "of", "lacking", "lag it reported", "caught up in"],
        c.missing_commits.map(m => { const l = c.lag_reported_by_nodes.find(x => x.at === m.in && x.of === m.of); return [m.in, m.of, int(m.commits), l ? ms(l.lag_ms) : "not asked", ms(c.caught_up_after_heal_ms[`${m.of}>${m.in}`])]; }), [2, 3, 4]))),
    h("div", {class: "card", style: "margin-top:12px"}, h("h3", {}, "What the same read gave"), table(["key", ...regions], c.reads.map(r => [h("code", {class: "key"}, r.key), ...regions.map(x => r.in[x])]), [], true))];
}
function storySection() {
  if (!R.staged.length) return null;
  return [h("h2", {}, "Conflicts made on purpose, and how they ended"),
    h("p", {class: "note"}, "Done during the cut, so nobody had seen the others. Below each, the store’s own account (crdtkv explain)."),
    h("div", {class: "stories"}, R.staged.map(x => h("div", {class: "card"}, h("h3", {}, x.title), h("p", {}, x.outcome), h("details", {}, h("summary", {}, ["Why? explain ", h("code", {}, x.key)]), h("pre", {}, x.explanation)))))];
}
function party(p) {
  if (!p) return "nothing";
  const what = p.kind ? p.kind.replace(/^(register|map|set|counter) /, "") : "commit";
  return h("span", {class: "party"}, h("span", {class: "tag"}, p.region || p.origin.split("@")[0]), what, p.value ? [" ", h("code", {}, p.value)] : "", h("br"), h("small", {}, `${p.at_s == null ? "" : p.at_s.toFixed(2) + " s · "}${p.origin}:${p.seq}`));
}
function conflictSection() {
  const list = R.conflicts.list, types = ["all", "staged", ...Object.keys(R.conflicts.by_type)];
  let type = "all", text = "", shown = 12;
  const body = h("div"), count = h("span", {class: "why"});
  const slot = c => c.subkey == null ? c.key : c.type === "set" ? `${c.key} ∋ ${c.subkey}` : `${c.key}.${c.subkey}`;
  const draw = () => {
    const hit = list.filter(c => (type === "all" || (type === "staged" ? c.staged : c.type === type)) && (!text || slot(c).toLowerCase().includes(text)));
    count.textContent = `${int(hit.length)} shown of ${int(R.conflicts.total)}`;
    body.replaceChildren(table(["what", "won", "against", "rule"], hit.slice(0, shown).map(c => [h("code", {class: "key"}, slot(c)), party(c.winner), c.losers.map(party), h("span", {class: "why"}, c.rule)]), [], true),
      hit.length > shown ? h("p", {style: "margin:12px 0 0"}, h("button", {class: "more", type: "button", onclick: () => { shown += 40; draw(); }}, `Show more (${hit.length - shown} left)`)) : "");
  };
  const chips = types.map(t => h("button", {type: "button", "aria-pressed": String(t === type), onclick: e => { type = t; shown = 12; chips.forEach(c => c.setAttribute("aria-pressed", String(c === e.currentTarget))); draw(); }}, {all: "all", staged: "made on purpose", set: "sets: add beats remove"}[t] || t));
  draw();
  return [h("h2", {}, "Every conflict is on record"),
    h("p", {class: "note"}, `Whenever an update met one that had not seen it, each region wrote down both, the winner and the rule. ${R.conflicts.total > list.length ? `The first ${int(list.length)} are here; report.json has all ${int(R.conflicts.total)}.` : ""}`),
    h("div", {class: "card"}, h("div", {class: "filters"}, chips, h("input", {type: "search", placeholder: "filter by key", "aria-label": "filter by key", oninput: e => { text = e.target.value.toLowerCase(); shown = 12; draw(); }}), count), body)];
}
function classSection() {
  const kinds = ["visible", "superseded", "journal", "lost"], C = R.classification;
  const means = {visible: "a read shows it", superseded: "a later write had seen it", journal: "lost to a concurrent write, on record", lost: "none of these"};
  const order = Object.keys(Object.values(C.by_type)[0] || {});
  return [h("h2", {}, "What became of every acknowledged write"),
    h("p", {class: "note"}, "The verifier stands outside the cluster. It knows what clients were told was done and what each writer had seen; and it reads, like any client, in every region. Each write must be in exactly one class, so the counts must add up."),
    h("div", {class: "card"}, h("div", {class: "legend"}, kinds.map(k => h("span", {}, h("i", {class: "block", style: `background:var(--${k})`}), h("b", {}, k), " " + means[k]))),
      h("div", {class: "bars", "aria-hidden": "true"}, Object.entries(C.regions).flatMap(([r, f]) => [h("b", {}, r), h("div", {class: "bar"}, kinds.map(k => h("i", {title: `${k}: ${int(f[k])}`, style: `width:${100 * f[k] / Math.max(1, C.acknowledged)}%;background:var(--${k})`})))])),
      table(["region", "type", ...kinds, "sum"], Object.entries(C.regions).flatMap(([r, f]) => [
        [h("b", {}, r), h("b", {}, "all"), ...kinds.map(k => h("b", {}, int(f[k]))), h("b", {}, int(kinds.reduce((n, k) => n + f[k], 0)))],
        ...order.map(t => { const x = (C.by_type[r] || {})[t] || {}; return ["", t, ...kinds.map(k => int(x[k] || 0)), int(kinds.reduce((n, k) => n + (x[k] || 0), 0))]; })]), [2, 3, 4, 5, 6]),
      h("p", {class: "note", style: "margin:14px 0 0"}, `${int(R.counters.count)} counters: in every region each equals the sum of its acknowledged increments; together ${int(R.counters.sum)}.`.replace("in every region each equals", failed.some(f => f.name.startsWith("counters")) ? "not all equal" : "in every region each equals")))];
}
function checkItem(c) {
  return h("li", {class: c.ok ? "ok" : "no"}, h("span", {class: "mark", "aria-label": c.ok ? "holds" : "failed"}, c.ok ? "✓" : "✗"), h("span", {}, c.name[0].toUpperCase() + c.name.slice(1), h("small", {}, c.detail), ...(c.first || []).slice(0, 5).map(v => h("small", {}, v)), c.violations > 5 ? h("small", {}, `… ${int(c.violations - 5)} more`) : ""));
}
function checkSection() {
  return [h("h2", {}, "The checks"), h("div", {class: "card", style: "margin-top:14px"}, h("ul", {class: "checks"}, R.checks.map(checkItem)))];
}
function setup() {
  const d = R.dataset;
  return [h("h2", {}, "The regions"), h("div", {class: "card map", style: "margin-top:14px"}, mapOfLinks(), h("div", {},
    table(["region", "delays as of", "airports loaded", "writes taken"], regions.map(r => [h("b", {}, r), city[r], int((d.per_region || {})[r]), int(R.writes.by_region[r])]), [2, 3]),
    h("p", {class: "note", style: "margin:14px 0 0;font-size:13px"}, `${int(d.airports)} airports, ${int(d.countries)} countries, ${int(d.time_zones)} time zones (${d.name} ${d.version}). ${int(R.writes.commits)} commits held ${int(R.writes.acknowledged)} writes: ${Object.entries(R.writes.by_kind).sort((a, b) => b[1] - a[1]).map(([k, n]) => `${int(n)} ${k}s`).join(", ")}.`)))];
}
function foot() {
  const e = R.environment;
  return h("footer", {}, h("p", {}, `Everything ran on one machine (${e.system}, ${e.cores} cores, Python ${e.python}); the delays between regions are emulated. Seed ${R.seed}. report.json beside this page has every number.`), h("p", {}, R.cluster.source.replace(/^#\s*/, "")));
}
document.title = (R.ok ? "✓ " : "✗ ") + document.title;
document.getElementById("main").replaceChildren(...[header(), figures(), setup(), lagSection(), timeSection(), cutSection(), storySection(), conflictSection(), classSection(), checkSection(), foot()].flat(9).filter(Boolean));
