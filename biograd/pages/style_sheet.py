"""The style of a page: light and dark, from 390 px on, for the keyboard and for print."""

from __future__ import annotations

from biograd.plots.style import DARK, NEUTRAL

LINKS = ("#0067a3", "#6cb6f0")
TILES = ("#f6f8fa", "#1c2127")
WARNINGS = ("#fff6e5", "#2c2414")


def _variables(names: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in names.items())


LIGHT = {name: colour for colour, name in NEUTRAL.items()}
STYLE = (
    ":root { color-scheme: light dark; "
    + _variables({**LIGHT, "link": LINKS[0], "tile": TILES[0], "warning": WARNINGS[0]})
    + " }\n@media (prefers-color-scheme: dark) { :root { "
    + _variables({**DARK, "link": LINKS[1], "tile": TILES[1], "warning": WARNINGS[1]})
    + " } }\n"
    + """
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { font: 16px/1.5 Arial, Helvetica, "Liberation Sans", "DejaVu Sans", sans-serif;
  color: var(--ink); background: var(--paper); margin: 0 auto; padding: 1.5rem 1.5rem 4rem;
  max-width: 92rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -100rem; background: var(--paper); padding: .5rem 1rem; }
.skip:focus { left: 1rem; top: 1rem; z-index: 2; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; }
p { max-width: 48rem; margin: .3rem 0 .9rem; }
.lead, .note, figcaption { color: var(--soft); }
.note, figcaption { font-size: .88rem; }
nav { border-bottom: 1px solid var(--grid); padding: .6rem 0; margin-top: 1rem; display: flex;
  gap: .4rem 1.2rem; flex-wrap: wrap; }
.tiles { display: grid; gap: .7rem; margin: 1.2rem 0 0;
  grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 46%), 1fr)); }
.tiles div { background: var(--tile); border-radius: 8px; padding: .7rem .8rem; font-size: .82rem;
  color: var(--soft); overflow-wrap: anywhere; }
.tiles b { display: block; font-size: 1.35rem; color: var(--ink); }
.figures { display: grid; gap: 1.6rem 1.8rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(20.5rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
.pairs { grid-template-columns: repeat(auto-fill, minmax(min(34rem, 100%), 1fr)); }
.pairs + .figures { margin-top: 1.6rem; }
.scroll { overflow-x: auto; }
figure svg { display: block; width: 100%; height: auto; max-width: 34rem; }
figure.wide svg { max-width: 52rem; min-width: 33rem; }
figcaption { margin: .3rem 0 .3rem; max-width: 34rem; }
figure.wide figcaption { max-width: 48rem; }
details { font-size: .88rem; }
summary { color: var(--link); cursor: pointer; width: fit-content; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tr.control td { color: var(--soft); }
.missing, .failed { background: var(--warning); border-left: 4px solid #d55e00;
  padding: .6rem .9rem; max-width: 48rem; margin: .8rem 0; font-size: .92rem; }
pre { background: var(--tile); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px;
  font-size: .82rem; line-height: 1.45; max-height: 30rem; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .8rem 0 0; padding: 0;
  list-style: none; font-size: .88rem; }
.key svg { width: 2.2rem; height: .9rem; vertical-align: -.1rem; margin-right: .4rem; }
@media (max-width: 46rem) {
  body { font-size: 15px; padding: 1rem .9rem 3rem; }
  h1 { font-size: 1.4rem; }
}
@media print { nav, details, .skip { display: none; } figure { break-inside: avoid; }
  pre { max-height: none; } }
"""
)
