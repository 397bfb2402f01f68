"""The page's style sheet: light and dark, phone and print, one colour per stage."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f6f8; --ink: #1a1e24; --muted: #5d6775; --rule: #dfe3e8; --faint: #eceff2;
  --pruned: #c8501e; --reconstructed: #7b56c9; --recovered: #0a8068; --accent: #2c63c7; --track: #eaeef4; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #13161b; --panel: #1b1f26; --ink: #e9ebee; --muted: #9ba5b3; --rule: #323943; --faint: #242a32;
  --pruned: #f08a5d; --reconstructed: #b49af2; --recovered: #3fc4a2; --accent: #7ba8fb; --track: #252c36; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3.5rem 2rem 5rem; }
.eyebrow { margin: 0 0 .4rem; font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; color: var(--muted); }
h1 { margin: 0; font-size: 2.1rem; line-height: 1.15; letter-spacing: -.015em; font-weight: 650; overflow-wrap: anywhere; }
h2 { margin: 0 0 .35rem; font-size: 1.25rem; letter-spacing: -.005em; font-weight: 650; }
h3 { margin: 0 0 .6rem; font-size: .95rem; font-weight: 600; }
p { margin: 0 0 .8rem; max-width: 44rem; }
section { margin-top: 4rem; }
section > h2 + p { color: var(--muted); margin-bottom: 1.5rem; }
.about { color: var(--muted); margin-top: .5rem; }
.lead { font-size: 1.1rem; margin: 1.75rem 0 0; max-width: 46rem; }
.note { color: var(--muted); font-size: .875rem; }
.figures { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0; margin: 2.25rem 0 0; border-top: 1px solid var(--rule);
  border-bottom: 1px solid var(--rule); }
.figures > div { padding: 1.3rem 1.25rem 1.2rem; border-left: 1px solid var(--rule); }
.figures > div:first-child { border-left: 0; padding-left: 0; }
.figures dt { font-size: .85rem; color: var(--muted); }
.figures dd { margin: .15rem 0 .1rem; font-size: 1.9rem; line-height: 1.2; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures dd.small { margin: 0; font-size: .85rem; font-weight: 400; letter-spacing: 0; color: var(--muted); white-space: normal;
  line-height: 1.45; }
.figures .arrow { color: var(--muted); font-weight: 400; padding: 0 .12em; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2rem 3rem; }
.pair > section { margin-top: 0; min-width: 0; }
.pair.sections { margin-top: 4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .75rem; text-align: right; border-bottom: 1px solid var(--faint); vertical-align: top; }
th { font-weight: 600; } td { white-space: nowrap; } thead th { color: var(--muted); font-weight: 500;
  border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; } th:last-child, td:last-child { padding-right: 0; }
tbody th { font-weight: 400; min-width: 6rem; overflow-wrap: anywhere; } tr.own th { font-weight: 650; }
td.best { font-weight: 700; } tr.dense { color: var(--muted); }
table.facts th { color: var(--muted); width: 11rem; padding-right: 1.5rem; } table.facts td { text-align: left;
  overflow-wrap: anywhere; white-space: normal; }
.pair table.facts th { width: 6.5rem; }
table.recipe td, table.recipe th { white-space: normal; overflow-wrap: anywhere; }
code { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }
.comparison + .comparison { margin-top: 3rem; }
.comparison .scroll { margin-top: 1.5rem; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 .9rem; padding: 0; font-size: .85rem;
  color: var(--muted); }
.key li { display: flex; align-items: center; gap: .4rem; }
svg { display: block; overflow: visible; }
.frame.named { padding: 0 4.6rem 0 9.5rem; } .frame.wide { padding: .5rem .75rem 0 3.1rem; } .frame.bare { padding: 0; }
.label { font-size: 12px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.label.name, .label.number { fill: var(--ink); } .label.name { font-size: 13px; } .label.strong { font-weight: 650; fill: var(--ink); }
.grid { stroke: var(--faint); } .guide { stroke: var(--faint); } .base { stroke: var(--rule); }
.dense { stroke: var(--ink); stroke-dasharray: 4 3; } tr.dense { stroke: none; }
.link { stroke: var(--muted); stroke-opacity: .45; stroke-width: 2; }
.mark { stroke: var(--paper); stroke-width: 1.5; }
.mark.pruned { fill: var(--paper); stroke: var(--pruned); stroke-width: 2.2; }
.mark.reconstructed { fill: var(--reconstructed); } .mark.recovered { fill: var(--recovered); }
.mark.trial { fill: var(--accent); fill-opacity: .8; } .mark.fixed { fill: var(--ink); }
.mark.hollow { fill: var(--paper); fill-opacity: 1; stroke-width: 1.5; } .mark.trial.hollow { stroke: var(--accent); }
.mark.fixed.hollow { stroke: var(--ink); } .mark.failed { fill: none; stroke: var(--muted); }
.best { fill: none; stroke: var(--ink); stroke-width: 1.6; stroke-linejoin: round; } td.best { stroke: none; }
.loss { fill: none; stroke: var(--recovered); stroke-width: 2; stroke-linejoin: round; }
.kept { fill: var(--accent); } .outline { fill: none; stroke: var(--muted); stroke-opacity: .6; } .track { fill: var(--track); }
.generation { margin-top: 1.5rem; padding: 1.1rem 1.25rem; background: var(--panel); border-radius: 8px; }
.generation h3 { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
.generation .pair { gap: 1rem 2rem; } .generation p { margin: .2rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .925rem; }
.tag { font-size: .8rem; color: var(--muted); }
.samples { list-style: none; margin: 0; padding: 0; font-size: .875rem; } .samples li { margin-top: .7rem; overflow-wrap: anywhere; }
footer { margin-top: 4rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); }
@media (max-width: 860px) { .figures { grid-template-columns: 1fr 1fr; }
  .figures > div:nth-child(odd) { border-left: 0; padding-left: 0; } .figures > div:nth-child(n+3) { border-top: 1px solid var(--rule);
  } }
@media screen and (max-width: 700px) { main { padding: 2rem 1.15rem 3.5rem; } .pair { grid-template-columns: 1fr; gap: 2.5rem; }
  .pair.sections { gap: 3.25rem; } section { margin-top: 3.25rem; } .pair.sections { margin-top: 3.25rem; } h1 { font-size: 1.7rem; }
  .frame.named { padding: 0 3.6rem 0 8.2rem; } .figures dd { font-size: 1.4rem; } .figures > div { padding: 1rem .9rem; }
  th, td { padding-left: .45rem; padding-right: .45rem; } table.facts th { width: 7rem; } table.facts th { padding-right: .75rem; } }
@media print { main { padding: 0; max-width: none; } body { font-size: 12px; } section { margin-top: 2rem; }
  .pair.sections { margin-top: 2rem; }
  .frame, .figures, table, .generation, .comparison { break-inside: avoid; } h2, h3, h2 + p, .key { break-after: avoid; } }
"""
