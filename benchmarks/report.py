"""Showing what was measured: as text, and as tables between two markers of a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import median

BEGIN = "<!-- figures: written by `python -m benchmarks --write` -->"
END = "<!-- end of figures -->"
WHAT = "| what | median | low to high | settings |"
Found = Mapping[str, Any]


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def as_text(section: Found, *, quick: bool) -> str:
    lines = [f"{section['title']}", f"  {section['settings']}"]
    width = max((len(figure["name"]) for figure in section["figures"]), default=0)
    for figure in section["figures"]:
        low, middle, high = _spread(figure)
        settings = f"  [{figure['settings']}]" if figure["settings"] else ""
        lines.append(f"  {figure['name']:<{width}}  {middle:>9} {figure['unit']}  ({low} to {high}){settings}")
    for target in section["targets"]:
        lines.append(f"  {_verdict(target)}: {_claim(target)}")
    lines += [f"  note: {note}" for note in section["notes"]]
    if quick:
        lines.append("  quick sizes: these figures only show that the benchmark works")
    return "\n".join(lines)


def as_markdown(found: Found) -> str:
    lines = []
    if found["quick"]:
        lines += ["**Quick sizes: these figures only show that the benchmarks work.**", ""]
    lines += [f"- {name}: {value}" for name, value in found["machine"].items()]
    lines += [f"- rounds: {found['repeat']}, interleaved; medians, with the lowest and the highest in brackets"]
    for section in found["sections"]:
        lines += ["", f"### {section['title']}", "", section["settings"], "", WHAT, "|---|---:|---|---|"]
        for figure in section["figures"]:
            low, middle, high = _spread(figure)
            lines.append(
                f"| {figure['name']} | {middle} {figure['unit']} | {low} to {high} | {figure['settings'] or ' '} |"
            )
        if section["targets"]:
            lines += ["", "| to reach | found | |", "|---|---:|---|"]
            lines += [f"| {_goal(target)} | {_value(target)} | {_verdict(target)} |" for target in section["targets"]]
        lines += ["", *(f"- {note}" for note in section["notes"])] if section["notes"] else []
    return "\n".join(lines)


def write_page(page: Path, found: Found) -> None:
    """Replace what lies between the markers of *page*."""
    text = page.read_text("utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} lacks the markers {BEGIN!r} and {END!r}; nothing was written.")
    page.write_text(f"{head}{BEGIN}\n\n{as_markdown(found)}\n\n{END}{tail}", "utf-8")


def merge(path: Path, found: dict[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    """Put the sections just measured in place of those in *path*, if it was measured at the same sizes."""
    if not path.exists():
        return found
    before = json.loads(path.read_text("utf-8"))
    if (before["quick"], before["repeat"]) != (found["quick"], found["repeat"]):
        return found
    sections = {section["name"]: section for section in (*before["sections"], *found["sections"])}
    return found | {"sections": [sections[name] for name in order if name in sections]}


def _spread(figure: Found) -> tuple[str, str, str]:
    values = figure["values"]
    return number(min(values)), number(median(values)), number(max(values))


def passes(target: Found) -> bool:
    return bool(target["value"] >= target["target"] if target["least"] else target["value"] <= target["target"])


def _verdict(target: Found) -> str:
    return "pass" if passes(target) else "MISS"


def _value(target: Found) -> str:
    return f"{number(target['value'])} {target['unit']}"


def _goal(target: Found) -> str:
    return f"{target['name']} {'≥' if target['least'] else '≤'} {number(target['target'])} {target['unit']}"


def _claim(target: Found) -> str:
    return f"{_goal(target)}, found {_value(target)}"
