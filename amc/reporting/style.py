"""The look of the report: its style sheet."""

from __future__ import annotations

from amc.reporting.pictures import COLORS, INK

CSS = f"""
:root {{ color-scheme: light; --ink: {INK}; --soft: #66717e; --line: #e6e9ee; --found: {COLORS["found"]}; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f7f8fa; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 56px 32px 80px; }}
section {{ margin-bottom: 40px; }}
h1 {{ font-size: 34px; line-height: 1.2; letter-spacing: -.015em; margin: 6px 0 14px; text-wrap: balance; }}
h1, .eyebrow, th, dd, pre {{ overflow-wrap: anywhere; }}
h2 {{ font-size: 20px; margin: 0 0 4px; letter-spacing: -.005em; }}
p {{ margin: 0 0 14px; max-width: 72ch; }}
.eyebrow {{ margin: 0; color: var(--found); font-size: 13px; font-weight: 600; letter-spacing: .06em;
  text-transform: uppercase; }}
.lead {{ font-size: 19px; }}
.note, h2 + p {{ color: var(--soft); font-size: 14px; max-width: 100ch; }}
.remark {{ border-left: 3px solid #d9822b; padding-left: 12px; font-size: 14px; max-width: 100ch; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 16px; }}
.card, figure, .wide, pre, dl {{ background: #fff; border: 1px solid var(--line); border-radius: 12px; }}
.card {{ padding: 18px 20px; display: flex; flex-direction: column; }}
.card b {{ font-size: 30px; line-height: 1.2; letter-spacing: -.02em; color: var(--found); }}
.card small, td i {{ color: var(--soft); font-style: normal; font-size: 13px; }}
.wide {{ overflow-x: auto; margin-bottom: 12px; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: 12px 18px; text-align: right; white-space: nowrap; }}
th:first-child {{ text-align: left; }}
thead th {{ color: var(--soft); font-size: 13px; font-weight: 600; border-bottom: 1px solid var(--line); }}
tbody th {{ font-weight: 600; }}
tbody th small {{ display: block; color: var(--soft); font-weight: 400; font-size: 12.5px; padding-left: 18px;
  white-space: normal; }}
tbody tr + tr > * {{ border-top: 1px solid var(--line); }}
tr.found td {{ font-weight: 600; }}
tr.found {{ background: #f1f8f9; }}
.dot {{ display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }}
.dot.dense {{ background: #c6ced8; }} .dot.uniform {{ background: {COLORS["uniform"]}; }}
.dot.start {{ background: {COLORS["start"]}; }}
.dot.found {{ background: var(--found); }}
figure {{ margin: 0; padding: 16px; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-family: inherit !important; }}
details {{ margin-top: 12px; font-size: 14px; }}
summary {{ cursor: pointer; color: var(--soft); }}
table.small {{ width: auto; margin-top: 8px; }}
table.small th, table.small td {{ padding: 3px 14px; }}
table.small tbody tr + tr > * {{ border: 0; }}
dl {{ display: flex; flex-wrap: wrap; gap: 8px 40px; padding: 16px 20px; margin: 8px 0 0; }}
dt {{ color: var(--soft); font-size: 13px; }}
dd {{ margin: 0; font-weight: 600; }}
pre {{ padding: 18px 20px; margin: 8px 0 0; font: 13px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; }}
@media print {{ body {{ background: #fff; }} section {{ break-inside: avoid; }} }}
"""
