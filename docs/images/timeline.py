#!/usr/bin/env python3
"""Draws docs/images/timeline.svg from what the demo really prints.

    cargo run --release -- demo --port 0 --once | docs/images/timeline.py > docs/images/timeline.svg
"""

import html
import sys

SHOWN = ("declined:", "hang:")
COLOURS = {"✓": "#3fb950", "✗": "#f85149", "↻": "#d29922", "↩": "#58a6ff", "●": "#8b949e"}
CHARACTER, LINE, WIDTH = 7.25, 19, 1180


def chosen(text: str) -> list[str]:
    lines, keep = [], False
    for line in text.splitlines():
        if line.split(" ")[0] in ("smooth:", "transient:", "rate_limited:", *SHOWN):
            keep = line.startswith(SHOWN)
        if keep and not line.startswith("  namespace"):
            lines.append(line)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def colour(line: str) -> str:
    if line.startswith(SHOWN):
        return "#e6edf3"
    mark = next((mark for mark in COLOURS if mark in line[:12]), None)
    return COLOURS.get(mark, "#8b949e")


def main() -> None:
    lines = chosen(sys.stdin.read())
    height = LINE * (len(lines) + 2)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">')
    print("<title>Timelines of two orders whose payment failed</title>")
    print(f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#0d1117"/>')
    print('<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12" xml:space="preserve">')
    for number, line in enumerate(lines):
        weight = ' font-weight="bold"' if line.startswith(SHOWN) else ""
        if len(line) * CHARACTER > WIDTH - 30:
            line = line[: int((WIDTH - 40) / CHARACTER)] + "…"
        text = html.escape(line)
        print(f'<text x="16" y="{LINE * (number + 1) + 9}" fill="{colour(line)}"{weight}>{text}</text>')
    print("</g>\n</svg>")


if __name__ == "__main__":
    main()
