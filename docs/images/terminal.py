#!/usr/bin/env python3
"""Draws what a command prints on a terminal, as SVG.

    docs/images/terminal.py --columns 110 --from '^declined:' --title "…" -- target/release/recoup demo --port 0 --once

Runs the command on a pseudoterminal of that width, so that it breaks lines and uses colours as on a real terminal.
`--from` leaves out the lines before the first one that matches. With NO_COLOR=1 in the environment, the command prints
no colours.
"""

from __future__ import annotations

import argparse
import fcntl
import html
import os
import pty
import re
import struct
import sys
import termios

FONT_SIZE, CHARACTER, LINE, MARGIN = 14, 8.43, 20, 16
BACKGROUND, TEXT = "#0d1117", "#e6edf3"
COLOURS = {31: "#f85149", 32: "#3fb950", 33: "#d29922", 34: "#58a6ff", 35: "#bc8cff", 36: "#39c5cf", 2: "#8b949e"}
ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")


def printed(command: list[str], columns: int) -> str:
    """Returns what the command prints on a terminal of that width."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        os.execvp(command[0], command)
    output = b""
    try:
        while part := os.read(terminal, 65536):
            output += part
    except OSError:
        # Linux reports the end of the command as an error of the terminal.
        pass
    os.waitpid(child, 0)
    return output.decode().replace("\r\n", "\n")


def spans(line: str) -> list[tuple[str, str]]:
    """Splits a line into parts, each with the SVG attributes of its style."""
    parts, attributes, at = [], "", 0
    for escape in ESCAPE.finditer(line):
        parts.append((attributes, line[at : escape.start()]))
        at = escape.end()
        for code in map(int, filter(None, (escape[1] or "0").split(";"))):
            if code == 0:
                attributes = ""
            elif code == 1:
                attributes += ' font-weight="bold"'
            elif code in COLOURS:
                attributes += f' fill="{COLOURS[code]}"'
    parts.append((attributes, line[at:]))
    return [(attributes, text) for attributes, text in parts if text]


def rows(line: str, columns: int) -> list[list[tuple[str, str]]]:
    """Splits a line into rows. Like a terminal, breaks a line that is too long even in the middle of a word."""
    broken: list[list[tuple[str, str]]] = [[]]
    room = columns
    for attributes, text in spans(line):
        while len(text) > room:
            broken[-1].append((attributes, text[:room]))
            broken.append([])
            text, room = text[room:], columns
        broken[-1].append((attributes, text))
        room -= len(text)
    return broken


def draw(lines: list[str], columns: int, title: str) -> None:
    drawn = [row for line in lines for row in rows(line, columns)]
    width = round(columns * CHARACTER + 2 * MARGIN)
    height = LINE * len(drawn) + 2 * MARGIN
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">')
    print(f"<title>{html.escape(title)}</title>")
    print(f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>')
    font = f'font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="{FONT_SIZE}"'
    print(f'<g {font} fill="{TEXT}">')
    for number, row in enumerate(drawn):
        y = MARGIN + LINE * number + FONT_SIZE
        column = 0
        for attributes, text in row:
            # Every group of words gets an explicit length, so that columns line up in any font that the reader's
            # browser uses.
            for words in re.finditer(r"\S+(?: \S+)*", text):
                x = MARGIN + (column + words.start()) * CHARACTER
                fitted = f'textLength="{len(words[0]) * CHARACTER:.1f}" lengthAdjust="spacingAndGlyphs"'
                print(f'<text x="{x:.1f}" y="{y}" {fitted}{attributes}>{html.escape(words[0], quote=False)}</text>')
            column += len(text)
    print("</g>\n</svg>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--from", dest="first", default="", help="regular expression of the first line to draw")
    parser.add_argument("--title", required=True)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    lines = [line.rstrip() for line in printed(arguments.command, arguments.columns).splitlines()]
    first = next((n for n, line in enumerate(lines) if re.search(arguments.first, ESCAPE.sub("", line))), None)
    if first is None:
        sys.exit(f"no line matches {arguments.first}")
    lines = lines[first:]
    while lines and not ESCAPE.sub("", lines[-1]).strip():
        lines.pop()
    draw(lines, arguments.columns, arguments.title)


if __name__ == "__main__":
    main()
