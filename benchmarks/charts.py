#!/usr/bin/env python3
"""Draws the bar charts of docs/performance.md from the JSON files beside this script.

Usage: python3 benchmarks/charts.py [OUTPUT_DIR]   (default: docs/images)

Each chart has one panel per machine, filled from that machine's newest file. Needs the standard library only.
"""

import json
import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Key in "figures" -> title, unit and which direction is better.
CHARTS = {
    "prefill": ("Prefill of a 640-token prompt", "ms", "lower is better"),
    "decode": ("Decode after a 640-token prompt, one sequence", "tokens/s", "higher is better"),
    "decode-8": ("Decode of eight sequences together, 640-token prompts", "tokens/s", "higher is better"),
    "llm-prefill": ("Qwen2.5-Coder-0.5B: prefill of 512 tokens", "tokens/s", "higher is better"),
    "llm-decode": ("Qwen2.5-Coder-0.5B: decode after a 512-token prompt", "tokens/s", "higher is better"),
    "train-step": ("Training step on 640 tokens, 225.6 M parameters", "s", "lower is better"),
    "memory": ("Peak memory, 225.6 M parameters, 640 tokens", "MB", "lower is better"),
    "load": ("Image preprocessing and loading 902 MB of weights", "ms", "lower is better"),
}
OTHERS = ("PyTorch", "llama.cpp")

WIDTH, LEFT, RIGHT = 760, 200, 140
BAR, ROW, TITLE, HEAD, AXIS, GAP = 16, 24, 66, 26, 42, 14
STYLE = """
  .back { fill: #ffffff; stroke: #d0d7de } text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 } .head { font-weight: 600 } .soft { fill: #59636e }
  .grid { stroke: #d1d9e0 } .range { stroke: #1f2328; stroke-width: 1.5 } .own { fill: #0969da } .other { fill: #9a6700 } .cut { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117; stroke: #3d444d } text { fill: #f0f6fc } .soft { fill: #9198a1 } .grid { stroke: #3d444d }
    .range { stroke: #f0f6fc } .own { fill: #4493f8 } .other { fill: #d29922 } .cut { fill: #0d1117 }
  }
"""


def newest_results():
    """The newest file of each machine, newest first."""
    found = {}
    for path in sorted(HERE.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        found[results["machine"]] = results
    return sorted(found.values(), key=lambda results: results["date"], reverse=True)


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:,g}"


def ticks(highest):
    """Round steps, four to eight of them, up to the first one at or above the highest value."""
    magnitude = 10.0 ** (len(str(int(highest))) - 1)
    step = next(step for step in (magnitude / 10, magnitude / 5, magnitude / 2, magnitude, 2 * magnitude)
                if highest / step <= 7)
    count = int(-(-highest // step))
    return [i * step for i in range(count + 1)]


def text(x, y, content, css="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1, y1, x2, y2, css):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def bar(label, figure, y, scale):
    """One labelled bar with the range over several runs, if there were several."""
    value, low, high = figure["value"], figure.get("low", figure["value"]), figure.get("high", figure["value"])
    end, middle, off_scale = LEFT + scale(value), y + BAR / 2, figure.get("off_scale", False)
    css = "other" if any(other in label for other in OTHERS) else "own"
    parts = [text(LEFT - 8, middle + 4, label, anchor="end"),
             f'<rect x="{LEFT}" y="{y:.1f}" width="{end - LEFT:.1f}" height="{BAR}" class="{css}"/>']
    shown = number(value) + (" (off scale)" if off_scale else "")
    if off_scale:
        parts.append(f'<rect x="{end - 26:.1f}" y="{y - 1:.1f}" width="5" height="{BAR + 2}" class="cut"/>')
    if low < high:
        left, end = LEFT + scale(low), max(end, LEFT + scale(high))
        parts += [line(left, middle, LEFT + scale(high), middle, "range")]
        parts += [line(x, middle - 4, x, middle + 4, "range") for x in (left, LEFT + scale(high))]
        shown += f" ({number(low)}-{number(high)})"
    return parts + [text(end + 6, middle + 4, shown)]


def panel(results, figures, top, marks, scale):
    heading = f'{results["machine"]}: {results["cpu"]}, {results["date"]}'
    parts, first = [text(20, top + 14, heading, "head")], top + HEAD
    bottom = first + ROW * len(figures)
    for mark in marks:
        x = LEFT + scale(mark)
        parts += [line(x, first - 4, x, bottom, "grid"), text(x, bottom + 14, number(mark), "soft", "middle")]
    for i, (label, figure) in enumerate(figures.items()):
        parts += bar(label, figure, first + i * ROW, scale)
    return parts


def chart(key, machines):
    title, unit, better = CHARTS[key]
    panels = [(results, results["figures"][key]) for results in machines if key in results["figures"]]
    drawn = [figure for _, figures in panels for figure in figures.values() if not figure.get("off_scale")]
    marks = ticks(max(figure.get("high", figure["value"]) for figure in drawn))
    across = WIDTH - LEFT - RIGHT

    def scale(value):
        return min(value / marks[-1], 1.0) * across

    legend = f"{unit}, {better}. Blue: haplovl. Ochre: other software."
    if any(figure.get("high", 0) > figure.get("low", 0) for figure in drawn):
        legend += " Whiskers: range of several measurements."
    parts, top = [text(20, 30, title, "title"), text(20, 50, legend, "soft")], TITLE
    for results, figures in panels:
        parts += panel(results, figures, top, marks, scale)
        top += HEAD + ROW * len(figures) + AXIS
        parts.append(text(LEFT + across / 2, top - 12, unit, "soft", "middle"))
    height = top + GAP
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)} ({unit}, {better})</title>", f"<style>{STYLE}</style>",
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6" class="back"/>', *parts, "</svg>", ""])


def main():
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "docs" / "images"
    machines = newest_results()
    unknown = {key for results in machines for key in results["figures"]} - CHARTS.keys()
    if unknown:
        sys.exit(f"no chart is defined for {', '.join(sorted(unknown))}: add it to CHARTS or remove it from the JSON files")
    for key in CHARTS:
        path = output / f"bench-{key}.svg"
        path.write_text(chart(key, machines), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
