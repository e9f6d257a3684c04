"""Draws docs/architecture.svg from the imports: `PYTHONPATH=src:. python -m tests.house.draw_architecture`.

Each floor is a row and each room a box with its number of modules. Arrows go from a room to the rooms that it imports.
To keep the picture legible, it omits arrows implied by another path and arrows to rooms that every room may use."""

from html import escape

from tests.house.test_house import FLOORS, PACKAGE, ROOT, STAGES, imports, modules, room_of

WIDTH, ROW, BOX, MARGIN = 960, 92, 44, 24
PICTURE = ROOT / "docs/architecture.svg"
EVERYWHERE = {"console", "errors", "paths"}
STYLE = """
    :root { --paper: #fbfbfa; --card: #ffffff; --ink: #1b1e24; --soft: #565d69; --line: #c9cac6; --stage: #e4f3ea; }
    @media (prefers-color-scheme: dark) {
      :root { --paper: #101216; --card: #171a20; --ink: #e9ebef; --soft: #a4acb9; --line: #4a515d; --stage: #15301f; }
    }
    text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink); text-anchor: middle; }
    .count { font-size: 11px; fill: var(--soft); }
    .paper { fill: var(--paper); stroke: var(--line); } .room { fill: var(--card); stroke: var(--line); }
    .stage { fill: var(--stage); stroke: var(--line); }
    .arrow { fill: none; stroke: var(--soft); stroke-width: 1; stroke-opacity: .55; }
"""


def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports."""
    found: dict[str, set[str]] = {room: set() for floor in FLOORS for room in floor}
    for path in modules():
        found[room_of(path)] |= {room_of(other) for other in imports(path)} - {room_of(path)}
    return found


def without_implied(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows that no longer path implies."""

    def reach(room: str) -> set[str]:
        seen: set[str] = set()
        todo = list(found[room])
        while todo:
            other = todo.pop()
            if other not in seen:
                seen.add(other)
                todo += found[other]
        return seen

    return {
        room: {other for other in others if not any(other in reach(between) for between in others - {other})}
        for room, others in found.items()
    }


def ordered(floor: set[str]) -> list[str]:
    """Return the rooms of a floor from left to right: stages in order, others by name."""
    return [stage for stage in STAGES if stage in floor] or sorted(floor)


def draw() -> str:
    """Return the picture as SVG."""
    counts = {room: sum(room_of(path) == room for path in modules()) for floor in FLOORS for room in floor}
    height = 2 * MARGIN + ROW * (len(FLOORS) - 1) + BOX
    places: dict[str, tuple[float, float]] = {}
    boxes = []
    for number, floor in enumerate(FLOORS):
        step = (WIDTH - 2 * MARGIN) / len(floor)
        for at, room in enumerate(ordered(floor)):
            x, y = MARGIN + step * (at + 0.5), MARGIN + ROW * number
            places[room] = (x, y)
            kind = "stage" if room in STAGES else "room"
            files = f"{counts[room]} module{'s' if counts[room] > 1 else ''}"
            boxes += [
                f'  <rect class="{kind}" x="{x - 62:.0f}" y="{y}" width="124" height="{BOX}" rx="8"/>',
                f'  <text x="{x:.0f}" y="{y + 19}">{escape(room)}</text>',
                f'  <text class="count" x="{x:.0f}" y="{y + 35}">{files}</text>',
            ]
    lines = []
    for room, others in sorted(without_implied(arrows()).items()):
        for other in sorted(others - EVERYWHERE):
            (x, y), (to_x, to_y) = places[room], places[other]
            if y == to_y:
                lean = 20 if to_x > x else -20
                depth = y + BOX + 34
                route = f"M{x + lean:.0f} {y + BOX}Q{(x + to_x) / 2:.0f} {depth} {to_x - lean:.0f} {y + BOX + 2}"
            else:
                route = f"M{x:.0f} {y + BOX}L{to_x:.0f} {to_y - 2}"
            lines.append(f'  <path class="arrow" d="{route}" marker-end="url(#head)"/>')
    title = "The packages by level; arrows are imports, and none points up"
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title"',
            f'     viewBox="0 0 {WIDTH} {height}">',
            f'  <title id="title">{title}</title>',
            f"  <style>{STYLE}  </style>",
            f'  <defs>{head}<path d="M0 1 7 4 0 7z" fill="#808894"/></marker></defs>',
            f'  <rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="12"/>',
            *lines,
            *boxes,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    found = arrows()
    print(f"{PICTURE.relative_to(ROOT)}: {len(found)} packages, {sum(map(len, found.values()))} arrows between them")
    print(f"{len(modules())} modules, {sum(len(imports(path)) for path in PACKAGE.rglob('*.py'))} imports between them")
