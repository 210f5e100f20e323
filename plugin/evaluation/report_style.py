"""The stylesheet of `report.html`: two themes, one set of names for colours."""

from .figures import LIGHT

DARK = {
    "ink": "#e8ebee",
    "muted": "#a3adb8",
    "grid": "#353d46",
    "paper": "#161a1f",
    "audio": "#ff9a5c",
    "visual": "#74b9f5",
    "av": "#4fcfa4",
    "other": "#c79bea",
}


def _variables(theme: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} --soft: #f4f6f8; --bad: #b3261e; }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} --soft: #1e242b; --bad: #ff8a80; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }}
main {{ max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }}
h1 {{ font-size: 1.05rem; font-weight: 600; color: var(--muted); margin: 0 0 .6rem; }}
h2 {{ font-size: 1.2rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--grid); }}
h3 {{ font-size: 1rem; margin: 1.8rem 0 .4rem; }}
p {{ max-width: 46rem; }}
p.headline {{ font-size: 1.35rem; line-height: 1.45; margin: 0 0 1.25rem; max-width: none; text-wrap: pretty; }}
p.note {{ background: var(--soft); border-left: 3px solid var(--muted); padding: .7rem 1rem; max-width: none; }}
.small {{ color: var(--muted); font-size: .875rem; }}
figure {{ margin: 1.25rem 0 2rem; }}
figure svg {{ width: 100%; height: auto; display: block; }}
figure.narrow svg {{ max-width: 32rem; }}
figcaption {{ color: var(--muted); font-size: .875rem; max-width: 46rem; }}
details {{ margin-top: .35rem; color: var(--muted); font-size: .875rem; }}
summary {{ cursor: pointer; }}
pre {{ background: var(--soft); color: var(--ink); padding: .7rem .9rem; overflow-x: auto; font-size: .8rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .925rem; }}
th, td {{ padding: .42rem .6rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }}
th {{ font-weight: 600; color: var(--muted); }}
th.group {{ color: var(--ink); border-bottom: 0; padding-bottom: 0; text-align: center; }}
thead tr:first-child:not(:last-child) th {{ border-bottom: 0; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th.text, td.text {{ text-align: left; white-space: normal; }}
td .ci {{ display: block; color: var(--muted); font-size: .78rem; }}
tr.reference td {{ color: var(--muted); }}
td code {{ font-size: .78rem; overflow-wrap: anywhere; }}
td.share {{ min-width: 8rem; }}
.bar {{ display: block; height: .35rem; background: var(--visual); border-radius: 2px; margin-top: .2rem; }}
.met {{ color: var(--av); font-weight: 600; }}
.missed {{ color: var(--bad); font-weight: 600; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(27rem, 1fr)); gap: 1.25rem 2rem; }}
.card {{ display: grid; grid-template-columns: 7.5rem 1fr; gap: 1rem; align-items: start; }}
.card img {{ width: 7.5rem; border-radius: 6px; image-rendering: pixelated; display: block; }}
.card audio {{ width: 100%; height: 2.1rem; }}
.card table {{ margin-top: .3rem; font-size: .85rem; }}
.card th, .card td {{ padding: .15rem .4rem; border-bottom: 0; text-align: left; }}
.card th:first-child, .card td:first-child {{ padding-left: 0; }}
@media (max-width: 34rem) {{ .cards, .card {{ grid-template-columns: 1fr; }} }}
.compact {{ margin: .4rem 0 1.4rem; font-size: .9rem; }}
.compact th {{ white-space: normal; vertical-align: bottom; }}
.compact td:first-child {{ white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }}
.compact td.text {{ overflow-wrap: anywhere; }}
.compact th, .compact td {{ padding: .4rem .45rem; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2rem; }}
"""
