"""Small charts of several lines on logarithmic scales, as one SVG that reads in light and in dark."""

import math
from dataclasses import dataclass

KINDS = ["dump", "refresh", "bootstrap"]
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 310, 230, 56, 34, 30, 40
STYLE = """
.ground { fill: #ffffff } text { font: 11px system-ui, sans-serif; fill: #59636e } .title { font-weight: 600; fill: #1b1f24 }
.grid { stroke: #d7dbe0; stroke-width: 1 } path { fill: none; stroke-width: 2 }
.dump { stroke: #0b7285; fill: #0b7285 } .refresh { stroke: #d9480f; fill: #d9480f } .bootstrap { stroke: #6741d9; fill: #6741d9 }
path.dump, path.refresh, path.bootstrap { fill: none } text.dump, text.refresh, text.bootstrap { stroke: none; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117 } text { fill: #9da7b1 } .title { fill: #e6edf3 } .grid { stroke: #30363d }
  .dump { stroke: #3bc9db; fill: #3bc9db } .refresh { stroke: #ff922b; fill: #ff922b } .bootstrap { stroke: #b197fc; fill: #b197fc }
}
"""


@dataclass
class Panel:
    """One chart: for each kind, values by size."""

    title: str
    unit: str
    lines: dict


def power_of_ten(power):
    value = 10.0**power
    return f"{value:,.0f}" if power >= 0 else f"{value:g}"


def chart(panel, left, top):
    sizes = [size for points in panel.lines.values() for size in points]
    values = [value for points in panel.lines.values() for value in points.values()]
    low_x, high_x = math.floor(math.log10(min(sizes))), max(math.ceil(math.log10(max(sizes))), math.floor(math.log10(min(sizes))) + 1)
    low_y = math.floor(math.log10(min(values)))
    high_y = max(math.ceil(math.log10(max(values))), low_y + 1)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(size):
        return left + LEFT + wide * (math.log10(size) - low_x) / (high_x - low_x)

    def y(value):
        return top + TOP + high * (high_y - math.log10(value)) / (high_y - low_y)

    out = [f'<text class="title" x="{left + LEFT}" y="{top + 18}">{panel.title}</text>']
    for power in range(low_x, high_x + 1):
        at = x(10.0**power)
        out.append(f'<line class="grid" x1="{at:.1f}" y1="{top + TOP}" x2="{at:.1f}" y2="{top + TOP + high}"/>')
        out.append(f'<text x="{at:.1f}" y="{top + TOP + high + 15}" text-anchor="middle">{power_of_ten(power)}</text>')
    for power in range(low_y, high_y + 1):
        at = y(10.0**power)
        out.append(f'<line class="grid" x1="{left + LEFT}" y1="{at:.1f}" x2="{left + LEFT + wide}" y2="{at:.1f}"/>')
        out.append(f'<text x="{left + LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{power_of_ten(power)}</text>')
    out.append(f'<text x="{left + LEFT + wide / 2}" y="{top + HEIGHT - 8}" text-anchor="middle">{panel.unit}</text>')
    for kind, points in panel.lines.items():
        path = " L".join(f"{x(size):.1f} {y(value):.1f}" for size, value in points.items())
        out.append(f'<path class="{kind}" d="M{path}"/>')
        out += [f'<circle class="{kind}" cx="{x(size):.1f}" cy="{y(value):.1f}" r="3"><title>{kind}, {size:,}: {value:.4g}</title></circle>' for size, value in points.items()]
    return "\n".join(out)


def drawn(panels, columns):
    lines = -(-len(panels) // columns)
    charts = [chart(panel, place % columns * WIDTH, 24 + place // columns * HEIGHT) for place, panel in enumerate(panels)]
    key = "\n".join(f'<text class="{kind}" x="{LEFT + 90 * place}" y="16">{kind}</text>' for place, kind in enumerate(KINDS))
    size = f'viewBox="0 0 {columns * WIDTH} {lines * HEIGHT + 24}" width="{columns * WIDTH}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<style>{STYLE}</style>\n<rect class="ground" width="100%" height="100%"/>\n{key}\n' + "\n".join(charts) + "\n</svg>\n"
