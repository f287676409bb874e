"""Style sheet of ``rtloop report``: light, dark, narrow and printed."""

from __future__ import annotations

__all__ = ["STYLE"]

# The runs' colours are Okabe and Ito's, which colour-blind readers can distinguish; lighter ones on black.
STYLE = """
:root { --text:#1b1f24; --dim:#57606a; --page:#ffffff; --line:#d8dee4; --soft:#f6f8fa; --bad:#b3261e; --good:#1a7f37;
  --note:#7a5b00; --c0:#0072B2; --c1:#C04F00; --c2:#00805C; --c3:#B04A86; --c4:#A86F00; --c5:#2A7FB0; }
@media (prefers-color-scheme: dark) { :root { --text:#e6edf3; --dim:#9aa5b1; --page:#0d1117; --line:#30363d;
  --soft:#161b22; --bad:#ff7b72; --good:#56d364; --note:#e3b341; --c0:#58A6DC; --c1:#F0883E; --c2:#3FC79A;
  --c3:#E29AC4;
  --c4:#F2C14E; --c5:#8CCBF2; } }
* { box-sizing:border-box }
body { margin:0 auto; padding:1rem 1.25rem 3rem; max-width:68rem; color:var(--text); background:var(--page);
  font:16px/1.5 system-ui, sans-serif; overflow-wrap:anywhere }
h1 { font-size:1.6rem; line-height:1.25; margin:.5rem 0 } h2 { font-size:1.2rem; margin:2rem 0 .5rem } h3 {
  font-size:1rem;
  margin:1rem 0 .25rem } .run-name { border-top:2px solid var(--line); padding-top:1.5rem; font-size:1.4rem }
.lead { font-size:1.05rem; margin:.25rem 0 } .note, footer, small { color:var(--dim); font-size:.85rem } footer {
  margin-top:3rem }
.scroll { overflow-x:auto; max-width:100% }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; margin:.5rem 0; font-size:.9rem;
  overflow-wrap:normal }
th, td { padding:.3rem .7rem; border-bottom:1px solid var(--line); text-align:left; vertical-align:top }
th small { display:block; font-weight:normal }
.figures td, .figures thead th { text-align:right; white-space:nowrap } .figures thead th:first-child {
  text-align:left }
.figures tbody th, .pairs th { white-space:nowrap } .compare tr:first-child th { text-align:right }
.pairs.compare td, .pairs.compare tr:first-child th { text-align:left } .pairs td, .pairs th, .grants td {
  overflow-wrap:anywhere }
.pairs th { max-width:22rem; white-space:normal; font-weight:600 } .compare tr:first-child th { max-width:16rem;
  white-space:normal }
td.bad { color:var(--bad); font-weight:bold; white-space:nowrap } td.good { color:var(--good); white-space:nowrap }
pre { margin:.25rem 0; white-space:pre-wrap; font-size:.8rem; background:var(--soft); padding:.4rem; max-width:32rem }
.grants { min-width:46rem } .findings { list-style:none; padding:0; margin:0 }
.findings li { color:var(--text); font-size:1rem; padding:.4rem .8rem; margin:.4rem 0;
  background:var(--soft);
  border-left:4px solid var(--dim) } li.bad { border-color:var(--bad) } li.good { border-color:var(--good) } li.note {
  border-color:var(--note) }
li.bad b { color:var(--bad) } li.good b { color:var(--good) } li.note b { color:var(--note) }
.charts { display:grid; grid-template-columns:repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap:1rem }
svg { display:block; width:100%; height:auto } .scroll > svg { min-width:38rem }
svg text { font:12px system-ui, sans-serif; fill:var(--dim); paint-order:stroke;
  stroke:var(--page); stroke-width:3px; stroke-linejoin:round } svg text.small { font-size:11px } svg text.heading {
  font-size:14px;
  font-weight:600; fill:var(--text) }
.grid { stroke:var(--line) } .axis { stroke:var(--dim) } .period { stroke:var(--dim); stroke-dasharray:5 4 }
.percentile { stroke:var(--text); stroke-opacity:.55; stroke-dasharray:2 3 }
.run { fill-opacity:.16; stroke-width:1.6 } .band { stroke-width:2; fill:none }
.r0 { --c:var(--c0) } .r1 { --c:var(--c1) } .r2 { --c:var(--c2) } .r3 { --c:var(--c3) } .r4 { --c:var(--c4) } .r5 {
  --c:var(--c5) }
path.run, .mark { fill:var(--c); stroke:var(--c) } path.band { stroke:var(--c) } .key { display:inline-block;
  width:.8em; height:.8em;
  margin-right:.4em; background:var(--c); border-radius:2px; print-color-adjust:exact;
  -webkit-print-color-adjust:exact }
.legend { margin-right:1.5em; white-space:nowrap }
rect.overrun { fill:var(--bad) } rect.missed { fill:var(--note) } svg text.overrun { fill:var(--bad) } svg text.missed
  { fill:var(--note) }
@media print { :root { --text:#000; --dim:#444; --page:#fff; --line:#ccc; --soft:#fff; --bad:#b3261e; --good:#1a7f37;
  --note:#7a5b00;
  --c0:#0072B2; --c1:#C04F00; --c2:#00805C; --c3:#B04A86; --c4:#A86F00; --c5:#2A7FB0 }
  body { max-width:none; padding:0; font-size:11pt } .scroll { overflow:visible } .scroll > svg { min-width:0 }
  .grants { min-width:0 } table { font-size:8pt } th, td { padding:.15rem .35rem } svg, tr, li {
  break-inside:avoid } h2, h3 {
  break-after:avoid } }
"""
