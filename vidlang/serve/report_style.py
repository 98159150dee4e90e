"""The one style sheet of reports: light and dark by the reader's setting, one column on a phone."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f27; --soft: #5b6472; --rule: #dfe3e9;
  --right: #16803c; --right-soft: #e3f5e9; --s0: #2463d1; --s1: #c2570c; --s2: #0b7f71; --s3: #7a3fc4;
  --s4: #b3245c; --s5: #6b6a12; --s6: #0f7296; --s7: #555c68;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1b1f27; --ink: #eceff4; --soft: #a3adbb; --rule: #333a46;
    --right: #5fd38a; --right-soft: #163222; --s0: #7fb0ff; --s1: #ffa866; --s2: #5ed6c5; --s3: #c8a3ff;
    --s4: #ff93bd; --s5: #d5d26a; --s6: #74cdf0; --s7: #b9c0cb;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 32px 20px 56px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 44px 0 12px; }
h3 { font-size: 1rem; margin: 0 0 8px; }
p { margin: 0 0 8px; }
.lead, .note, footer { color: var(--soft); }
.note { font-size: 0.85rem; margin: 6px 0 0; }
footer { margin-top: 48px; font-size: 0.85rem; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px;
  margin: 24px 0 0; padding: 0;
}
.cards li, .chart, .table, .row {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
}
.cards li { list-style: none; padding: 14px 16px; }
.cards b { display: block; font-size: 1.9rem; line-height: 1.25; letter-spacing: -0.02em; }
.cards small { color: var(--soft); }
.charts { display: flex; flex-wrap: wrap; gap: 14px; }
.chart { margin: 0; padding: 14px 16px; flex: 1 1 330px; min-width: min(100%, 330px); max-width: 100%; }
.chart > svg { display: block; width: 100%; max-width: 450px; height: auto; margin: 0 auto; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; }
.reference { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 2 4; }
.curve polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.s0 polyline { stroke: var(--s0); } .s1 polyline { stroke: var(--s1); stroke-dasharray: 7 4; }
.s2 polyline { stroke: var(--s2); stroke-dasharray: 2 4; }
.s3 polyline { stroke: var(--s3); stroke-dasharray: 9 3 2 3; }
.s4 polyline { stroke: var(--s4); } .s5 polyline { stroke: var(--s5); stroke-dasharray: 7 4; }
.s6 polyline { stroke: var(--s6); stroke-dasharray: 2 4; }
.s7 polyline { stroke: var(--s7); stroke-dasharray: 9 3 2 3; }
.s0 circle { fill: var(--s0); }
.s1 circle { fill: var(--s1); }
.s2 circle { fill: var(--s2); }
.s3 circle { fill: var(--s3); }
.s4 circle { fill: var(--s4); } .s5 circle { fill: var(--s5); }
.s6 circle { fill: var(--s6); } .s7 circle { fill: var(--s7); }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; margin: 6px 0 0; padding: 0;
  font-size: 0.9rem;
}
.swatch { width: 24px; height: 8px; margin-right: 6px; vertical-align: middle; }
.table { overflow-x: auto; padding: 4px 16px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td {
  padding: 8px 12px 8px 0; text-align: right; border-top: 1px solid var(--rule); white-space: nowrap;
}
thead th { border-top: 0; color: var(--soft); font-weight: 600; }
th:first-child { text-align: left; font-weight: 500; white-space: normal; }
td:nth-child(2) { font-weight: 700; }
tbody th[colspan] { padding-top: 18px; font-weight: 700; border-top: 0; text-align: left; }
tbody:first-of-type th[colspan] { padding-top: 10px; }
.costs th small { display: block; color: var(--soft); font-weight: 400; }
.costs td:nth-child(2) { font-weight: inherit; }
.compared td { white-space: normal; overflow-wrap: anywhere; }
.compared td:nth-child(2) { font-weight: inherit; }
.bar { display: block; width: 100%; min-width: 90px; height: 8px; margin-top: 3px; }
.bar .whole { fill: var(--rule); } .bar .part { fill: var(--s0); }
.pruned { margin: 20px 0 0; }
.pruned img { display: block; width: min(100%, 1100px); height: auto; image-rendering: pixelated; }
.pruned ol { margin: 4px 0 0; padding-left: 22px; }
.facts {
  display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 12px 0 0; font-size: 0.9rem;
  color: var(--soft);
}
.facts div { display: flex; gap: 6px; } .facts dd { margin: 0; color: var(--ink); }
.row { padding: 16px; margin: 0 0 14px; }
.row h3 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
.row > p { font-size: 0.9rem; color: var(--soft); margin: 2px 0 12px; }
.row > p.found { color: var(--right); font-weight: 600; }
.results {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 12px;
  list-style: none; margin: 0; padding: 0;
}
.results li {
  border: 2px solid var(--rule); border-radius: 9px; overflow: hidden; display: flex;
  flex-direction: column;
}
.results img { display: block; width: 100%; height: auto; background: var(--rule); }
.results div { padding: 7px 9px 9px; font-size: 0.85rem; line-height: 1.35; overflow-wrap: anywhere; }
.results .place { display: flex; justify-content: space-between; color: var(--soft); padding-bottom: 0; }
.results .right { border-color: var(--right); background: var(--right-soft); }
.results .right .place { color: var(--right); font-weight: 700; }
.results .below { border-style: dashed; }
@media print { body { background: #fff; } .row, .chart { break-inside: avoid; } }
""".strip()
