#include <string>

#include "bench/load/report.h"

namespace tidemark::bench {
namespace {

// One file, no network: the script draws SVG from the report that stands in the page.
constexpr char kHead[] = R"page(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>tidemark-bench</title>
<style>
:root { --ink: #1b2733; --soft: #5b6b7a; --line: #d9e0e6; --paper: #fff; --wash: #f5f7f9; --a: #0b6fb8; --b: #d1682b; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa9b6; --line: #33414d; --paper: #10171e; --wash: #182129; --a: #58aef0; --b: #f0955a; --bad: #ff8a80 }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.4rem; margin: 0 0 .2rem } h2 { font-size: 1rem; margin: 0 0 .4rem } h2 span { color: var(--soft); font-weight: normal; font-size: .85rem; margin-left: .6rem }
p { margin: 0 0 1rem; color: var(--soft) } .bad { color: var(--bad) }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .6rem; margin: 0 0 1.5rem }
.facts div { background: var(--wash); border-radius: .4rem; padding: .6rem .8rem }
.facts b { display: block; font-size: 1.25rem } .facts span { color: var(--soft); font-size: .85rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.4rem }
svg { width: 100%; height: auto; display: block } text { fill: var(--soft); font-size: 11px }
.grid { stroke: var(--line) } .s0 { stroke: var(--a); fill: none; stroke-width: 1.8 } .s1 { stroke: var(--b); fill: none; stroke-width: 1.8 }
.f0 { fill: var(--a) } .key { color: var(--soft); font-size: .85rem } .k0 { color: var(--a) } .k1 { color: var(--b) }
</style></head><body>
<h1 id="title"></h1><p id="lead"></p><p id="trouble" class="bad"></p>
<div class="facts" id="facts"></div><div class="plots" id="plots"></div>
<script type="application/json" id="report">)page";

constexpr char kTail[] = R"page(</script>
<script>
const r = JSON.parse(document.getElementById("report").textContent);
const put = (id, text) => document.getElementById(id).textContent = text;
const short = v => v >= 1e6 ? +(v / 1e6).toPrecision(3) + " M" : v >= 1e3 ? +(v / 1e3).toPrecision(3) + " k" : String(+v.toPrecision(3));
put("title", `${r.machines} machines, ${r.profile}`);
put("lead", `tidemark-bench ${r.version}, ${r.seconds.toFixed(1)} s measured, ${r.disks} disk(s) each` +
    (r.interval_ms ? `, an epoch every ${r.interval_ms} ms` : ", each epoch as soon as the last is durable") +
    (r.interrupted ? "; interrupted" : "") + (r.note ? "; " + r.note : ""));
if (r.errors) put("trouble", `${r.errors} errors, the first: ${r.first_error}`);
if (r.verified && r.verified.error) put("trouble", "verification: " + r.verified.error);
const fact = (name, value, unit) => {
  if (value === undefined || value === null || Number.isNaN(value)) return;
  const box = document.createElement("div"), big = document.createElement("b"), small = document.createElement("span");
  big.textContent = (typeof value === "number" ? short(value) : value) + (unit ? " " + unit : "");
  small.textContent = name; box.append(big, small); document.getElementById("facts").append(box);
};
fact("durable", r.durable_mib_per_s, "MiB/s"); fact("epochs", r.epochs_per_s, "/s"); fact("blocks", r.blocks_per_s, "/s");
if (r.ack_samples) { fact("acknowledged, p50", r.ack_us_p50 / 1000, "ms"); fact("acknowledged, p99", r.ack_us_p99 / 1000, "ms"); }
if (r.staleness_us_max) fact("staleness, p99", r.staleness_us_p99 / 1000, "ms");
fact("server CPU per GiB", r.server_cpu_s_per_gib, "s"); fact("server CPU, of a core", r.server_cpu_share * 100, "%");
fact("server memory", r.server_resident_mib, "MiB");
if (r.server_bytes_per_session > 0) fact("memory per session", r.server_bytes_per_session / 1024, "KiB");
if (r.server) { fact("records in a commit", r.server.records_per_commit); fact("log write, mean", r.server.log_write_ms_mean, "ms"); }
if (r.verified && !r.verified.error) fact("points read back, every byte", r.verified.points);

const W = 460, H = 220, L = 52, B = 28, T = 10, R = 10, NS = "http://www.w3.org/2000/svg";
const node = (name, attributes, text) => {
  const made = document.createElementNS(NS, name);
  for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
  if (text !== undefined) made.textContent = text;
  return made;
};
const frame = (title, unit, keys) => {
  const figure = document.createElement("section"), head = document.createElement("h2"), key = document.createElement("div"), of = document.createElement("span");
  head.textContent = title; of.textContent = unit; head.append(of); key.className = "key";
  keys.forEach((k, i) => { const s = document.createElement("span"); s.className = "k" + i; s.textContent = (keys.length > 1 ? "— " : "") + k + "  "; key.append(s); });
  const svg = node("svg", {viewBox: `0 0 ${W} ${H}`, role: "img"});
  svg.append(node("title", {}, title));
  figure.append(head, svg, key); document.getElementById("plots").append(figure);
  return svg;
};
const top_of = v => { if (!(v > 0)) return 1; const p = 10 ** Math.floor(Math.log10(v)); for (const m of [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10]) if (m * p >= v) return m * p; return 10 * p; };
const rows = (svg, top) => { for (let i = 0; i <= 4; ++i) {
  const y = T + (H - T - B) * (1 - i / 4);
  svg.append(node("line", {x1: L, x2: W - R, y1: y, y2: y, class: "grid"}), node("text", {x: L - 6, y: y + 4, "text-anchor": "end"}, short(top * i / 4)));
} };
// `gaps`: what is 0 was not measured then.
const lines = (title, unit, fields, names, gaps) => {
  const s = r.series; if (!s.length || !s.some(p => fields.some(f => p[f] > 0))) return;
  const svg = frame(title, unit, names), end = s[s.length - 1].s || 1, top = top_of(Math.max(...s.flatMap(p => fields.map(f => p[f]))));
  rows(svg, top);
  const wish = end / 5, power = 10 ** Math.floor(Math.log10(wish)), step = [1, 2, 5, 10].map(m => m * power).find(m => m >= wish);
  for (let t = 0; t <= end; t += step) { const x = L + (W - L - R) * t / end;
    svg.append(node("line", {x1: x, x2: x, y1: H - B, y2: H - B + 4, class: "grid"}), node("text", {x, y: H - 8, "text-anchor": x > W - 24 ? "end" : "middle"}, short(t) + " s")); }
  fields.forEach((f, i) => svg.append(node("polyline", {class: "s" + i, points: s.filter(p => !gaps || p[f] > 0).map(p =>
    `${(L + (W - L - R) * p.s / end).toFixed(1)},${(T + (H - T - B) * (1 - p[f] / top)).toFixed(1)}`).join(" ")})));
};
// Counts over a logarithmic axis of time: twelve bars to a decade.
const bars = (title, distribution) => {
  if (!distribution || !distribution.length) return;
  const at = us => Math.floor(Math.log10(Math.max(1, us)) * 12), counts = new Map(); let all = 0;
  for (const [us, n] of distribution) { counts.set(at(us), (counts.get(at(us)) || 0) + n); all += n; }
  const first = Math.floor(Math.min(...counts.keys()) / 12) * 12, last = Math.ceil((Math.max(...counts.keys()) + 1) / 12) * 12;
  const top = top_of(Math.max(...counts.values()) / all * 100), svg = frame(title, "% of all", []), step = (W - L - R) / (last - first);
  rows(svg, top);
  for (const [bar, n] of counts) { const h = (H - T - B) * (n / all * 100) / top;
    svg.append(node("rect", {class: "f0", x: L + step * (bar - first) + .5, y: H - B - h, width: Math.max(1, step - 1), height: h})); }
  for (let d = first; d <= last; d += 12) { const us = 10 ** (d / 12);
    svg.append(node("text", {x: L + step * (d - first), y: H - 8, "text-anchor": d == last ? "end" : "middle"}, us >= 1e6 ? us / 1e6 + " s" : us >= 1e3 ? us / 1e3 + " ms" : us + " us")); }
};
lines("Throughput over time", "MiB/s", ["mib_per_s"], ["plain bytes that became durable"]);
lines("Blocks over time", "a second", ["blocks_per_s"], ["became durable"]);
lines("Epochs over time", "a second", ["epochs_per_s"], ["became durable"]);
lines("Acknowledgement over time", "ms since due", ["ack_p50_ms", "ack_p99_ms"], ["p50", "p99"], true);
bars("Acknowledgement: distribution", r.ack_distribution_us);
lines("Staleness over time", "ms", ["staleness_p50_ms", "staleness_p99_ms"], ["p50", "p99"], true);
bars("Staleness: distribution", r.staleness_distribution_us);
lines("Server CPU over time", "cores", ["server_cpu"], ["user and system time of the process"]);
r.series.forEach(p => { p.cpu_per_gib = p.mib_per_s > 0 ? p.server_cpu / (p.mib_per_s / 1024) : 0; p.kib_per_session = p.connected > 0 ? p.server_mib * 1024 / p.connected : 0; });
lines("Server CPU per GiB over time", "s/GiB", ["cpu_per_gib"], ["CPU seconds for each plain GiB"]);
lines("Server memory over time", "MiB", ["server_mib"], ["resident"]);
lines("Server memory over sessions", "KiB", ["kib_per_session"], ["resident memory, all of it, for each session"]);
</script></body></html>
)page";

}  // namespace

std::string page_of(const nlohmann::ordered_json& report) {
  std::string data = report.dump();
  // What a server calls itself must not end the script.
  for (std::size_t at = 0; (at = data.find('<', at)) != std::string::npos; at += 6) data.replace(at, 1, "\\u003c");
  return kHead + data + kTail;
}

}  // namespace tidemark::bench
