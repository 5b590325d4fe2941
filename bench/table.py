#!/usr/bin/env python3
"""Puts the newest of bench/results/ into README.md as a table, and beside it a plot, bench/results/newest.svg.

usage: bench/table.py [RESULT.json]; `./dev bench --json bench/results/DATE-COMMIT.json` makes one.
"""
import html
import json
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, README, PLOT = ROOT / "bench/results", ROOT / "README.md", "bench/results/newest.svg"
BEGIN, END = "<!-- figures: written by bench/table.py -->", "<!-- end of figures -->"


def number(value):
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(entry):
    return f" ({number(entry['spread'][0])} to {number(entry['spread'][1])})" if entry.get("spread") and entry["samples"] > 1 else ""


def verdict(entry):
    if entry["value"] is None:
        return "not measured"
    return "" if entry["holds"] is None else "holds" if entry["holds"] else "**does not hold**"


def table(report):
    machine = report["machine"]
    lines = [f"Measured {report['date'][:10]} at commit {report['commit']} with `./dev bench`"
             + ("" if report["form"] == "default" else f" --{report['form']}")
             + f" in {report['seconds'] // 60} min {report['seconds'] % 60} s, on {machine['cores']} cores ({machine['processor']}, Linux "
             f"{machine['kernel']}, {machine['file_system']}), both ends on the same cores"
             + (f", which others used as well (load average before: {machine['load_average_before']})" if machine["load_average_before"] > 0.5 else "")
             + ". Medians, and lowest to highest of the samples." + (f" Note: {report['note']}." if report.get("note") else ""), "",
             f"![each figure as a share of its target]({PLOT})", "",
             "| what | value | target | samples | |", "| --- | --- | --- | --- | --- |"]
    for entry in report["rows"]:
        if entry["target"] is None and entry["value"] is not None and entry.get("measurement") == "micro":
            continue
        value = "" if entry["value"] is None else f"{number(entry['value'])} {entry['unit']}{spread(entry)}"
        target = "" if entry["target"] is None else f"{'at most' if entry['at_most'] else 'at least'} {number(entry['target'])}"
        note = f": {entry['note'].removeprefix('not measured: ')}" if entry["value"] is None else ""
        lines.append(f"| {entry['row']} | {value} | {target} | {entry['samples'] or ''} | {verdict(entry)}{note.replace('|', ' ')} |")
    return "\n".join(lines)


def plot(report):
    """A bar for each row with a target, by how much better (right) or worse (left) it is, on a logarithmic scale."""
    entries = [e for e in report["rows"] if e["value"] is not None and e["target"]]
    factor = lambda e, value: max(1 / 64, min(64, (e["target"] / max(value, 1e-9)) if e["at_most"] else value / e["target"]))
    label_width, width, height, top = 560, 360, 20, 40
    x = lambda f: label_width + width / 2 + math.log2(f) / 6 * (width / 2)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{label_width + width + 60}" height="{top + height * len(entries) + 12}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
             f'<text x="{x(1)}" y="14" text-anchor="middle">times better than its target</text>']
    for power in range(-6, 7, 2):
        colour = "#333" if power == 0 else "#ddd"
        parts.append(f'<line x1="{x(2.0 ** power)}" x2="{x(2.0 ** power)}" y1="{top - 6}" y2="{top + height * len(entries)}" stroke="{colour}"/>')
        words = f"{2 ** power}x" if power >= 0 else f"1/{2 ** -power}"
        parts.append(f'<text x="{x(2.0 ** power)}" y="{top - 10}" text-anchor="middle" fill="#666">{words}</text>')
    for i, entry in enumerate(entries):
        y, end = top + i * height, x(factor(entry, entry["value"]))
        colour = "#2a7d4f" if entry["holds"] else "#b8322a"
        name = entry["row"] if len(entry["row"]) <= 78 else entry["row"][:76] + "…"
        parts.append(f'<text x="{label_width - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<rect x="{min(end, x(1))}" y="{y + 4}" width="{max(1.5, abs(end - x(1)))}" height="{height - 8}" fill="{colour}"/>')
        if entry.get("spread") and entry["samples"] > 1:
            ends = [x(factor(entry, value)) for value in entry["spread"]]
            parts.append(f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{y + height / 2}" y2="{y + height / 2}" stroke="#111"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main():
    source = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else max(RESULTS.glob("*.json"))
    report = json.loads(source.read_text())
    text = README.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(f"{text[:begin]}\n{table(report)}\n{text[end:]}")
    (ROOT / PLOT).write_text(plot(report))


if __name__ == "__main__":
    main()
