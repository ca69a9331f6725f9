"""The report page's style sheet: two colour schemes, a card grid, and the charts' shapes."""

STYLE = """
:root {
  color-scheme: light dark;
  --bg: #f6f7f9; --card: #fff; --ink: #1c2430; --dim: #66707f; --line: #dfe3e9;
  --old: #5b7cfa; --new: #17a589; --gap: #d9483c; --runs: #cfe8d6; --unicorn: #d98c21;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #12161c; --card: #1b2129; --ink: #e6eaf0; --dim: #95a0b0; --line: #2d3641;
    --old: #5571d8; --new: #1f9d83; --gap: #cf4f45; --runs: #274335; --unicorn: #f0a943;
  }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px;
  background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 24px; margin: 0 }
h2 { font-size: 19px; margin: 36px 0 12px }
h3 { font-size: 13px; font-weight: 600; color: var(--dim); margin: 0 0 8px }
.verdict {
  display: inline-block; padding: 1px 12px; border-radius: 99px; margin-left: 6px;
  color: #fff; font-size: 14px; vertical-align: 3px;
}
.verdict.pass { background: var(--new) }
.verdict.fail { background: var(--gap) }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; overflow-x: auto;
}
.below { margin-top: 14px }
.grid2 {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr));
  gap: 14px; margin-top: 14px;
}
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px }
.figures b { display: block; font-size: 23px; font-weight: 650 }
.figures span { color: var(--dim); font-size: 13px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line) }
th { color: var(--dim); font-weight: 600; font-size: 13px }
th:first-child, td:first-child { text-align: left }
tbody tr:last-child td { border-bottom: 0 }
p.why { color: var(--gap); font-weight: 600 }
.conditions { color: var(--dim); font-size: 13px }

svg { width: 100%; height: auto; display: block }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim) }
svg text.label { fill: var(--ink) }
svg text.end { text-anchor: end }
svg text.middle { text-anchor: middle }
svg text.inside { fill: #fff; font-weight: 600 }
svg .grid { stroke: var(--line) }
svg .axis { stroke: var(--dim) }
.lane { fill: var(--dim); opacity: .12 }
.phase { stroke: var(--card) }
.phase.old { fill: var(--old) }
.phase.new { fill: var(--new) }
.runs { fill: var(--runs) }
.gap { fill: var(--gap) }
.bar { fill: var(--old) }
.dot { fill: var(--old); opacity: .8 }
.dot.unicorn { fill: var(--unicorn) }
"""
