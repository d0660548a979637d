"""How reports look, in light and in dark and on paper."""

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2127;--soft:#5a6672;--rule:#dde2e7;--card:#f5f7f9;--train:#2f6cb0;
--val:#d06a1c;--bad:#c2362b;--good:#23804f;--grey:#9aa3ad;--shade:#f3ead0;--warn:#fff4e0}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14181c;--ink:#e4e8ec;--soft:#9ba7b3;--rule:#2f373f;
--card:#1c2228;--train:#6ba6e8;--val:#f0a05a;--bad:#ff8174;--good:#5fc493;--grey:#6d7883;--shade:#343021;--warn:#33291a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1180px;padding:0 20px 40px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:2rem;line-height:1.2;margin:36px 0 8px;overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:0 0 4px}
h3{font-size:1rem;margin:26px 0 6px}
p{margin:6px 0 12px;max-width:78ch}
.lead{font-size:1.1rem}
.see,figcaption,footer,caption,.legend{color:var(--soft)}
section{margin-top:34px;padding-top:22px;border-top:1px solid var(--rule)}
footer{margin-top:40px;padding-top:14px;border-top:1px solid var(--rule);font-size:.85rem;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:16px;font-size:.92rem}
a{color:var(--train)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(118px,1fr));gap:10px;margin:18px 0 0}
.facts div{background:var(--card);border-radius:8px;padding:8px 10px}
dt{color:var(--soft);font-size:.78rem}
dd{margin:0;font-size:1rem;font-weight:600;overflow-wrap:anywhere}
.warnings{background:var(--warn);border-left:4px solid var(--val);border-radius:4px;padding:10px 16px;margin:14px 0}
.warnings ul{margin:4px 0;padding-left:20px}
.grid{display:grid;gap:18px 22px}
.grid.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr))}
.grid.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:18px 40px}
.grid.small{grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px 12px}
figure{margin:0;min-width:0;break-inside:avoid}
figcaption{font-size:.85rem;line-height:1.35;margin-top:2px;overflow-wrap:anywhere}
.small figure{border:1px solid var(--rule);border-radius:6px;padding:6px 8px}
.small figure.shift{border-color:var(--val);box-shadow:inset 0 0 0 1px var(--val)}
.small figure.strong{border-color:var(--bad);box-shadow:inset 0 0 0 1px var(--bad)}
.two figure,.wide figure{display:flex;flex-direction:column}
.wide svg{margin-top:auto}
.two figcaption,.wide figcaption{order:-1;margin:0 0 6px}
figcaption strong{color:var(--ink);display:block}
.shift strong{color:var(--val)}
.strong strong{color:var(--bad)}
figure.lengths{max-width:230px}
figure.symbols{max-width:440px;margin-bottom:18px}
.small figure{max-width:230px}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:.88rem;max-width:none}
.key{display:inline-block;width:14px;height:11px;margin-right:6px;border-radius:2px}
svg{display:block;width:100%;overflow:visible;fill:var(--ink)}
svg.panel{height:auto}
svg.graph{max-width:620px}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--ink)}
text.small{font-size:11px}
text.tiny{font-size:9px}
text.soft{fill:var(--soft)}
text.label{font-weight:600}
text.mono{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:8.5px;fill:var(--soft)}
.rule{stroke:var(--rule);fill:none;vector-effect:non-scaling-stroke}
.wick,.rose,.fell{stroke:var(--ink);stroke-width:.9;fill:none}
.fell{fill:var(--ink)}
.rose{fill:var(--paper)}
.wick.open,.rose.open,.fell.open{stroke:var(--soft)}
.rose.open,.fell.open{fill:var(--grey)}
.wick.model,.rose.model,.fell.model{stroke:var(--val)}
.fell.model{fill:var(--val)}
.shade{fill:var(--shade)}
.line{fill:none;stroke:var(--ink);stroke-width:1.6;stroke-linejoin:round}
.line.thin{stroke-width:1.1}
.line.train{stroke:var(--train)}
.line.val{stroke:var(--val)}
.line.held{stroke:var(--ink)}
.line.carried{stroke:var(--ink);stroke-dasharray:5 3}
.line.grey{stroke:var(--grey);stroke-dasharray:5 3}
.dot.train,.area.train,.piece.train,.key.train{fill:var(--train);background:var(--train)}
.dot.val,.piece.val,.key.val{fill:var(--val);background:var(--val)}
.dot.held,.dot.carried,.key.held{fill:var(--ink);background:var(--ink)}
.key.carried{height:0;border-top:2px dashed var(--ink);vertical-align:middle}
.dot.grey,.piece.grey,.key.grey{fill:var(--grey);background:var(--grey)}
.piece.ink,.key.ink{fill:var(--ink);background:var(--ink)}
.piece.bad,.key.bad{fill:var(--bad);background:var(--bad)}
.key.shade{background:var(--shade)}
.key.h5{background:var(--train)}
.key.h2{background:color-mix(in srgb,var(--train) 32%,transparent)}
.key.thinly{height:3px;vertical-align:middle;background:var(--bad)}
.key.interval{background:color-mix(in srgb,var(--val) 35%,transparent)}
.key.rising{border:1.5px solid var(--ink)}
.key.falling{background:var(--ink)}
.key.unfinished{border:1px solid var(--soft);background:var(--grey)}
.area.train{fill-opacity:.38}
.piece.pale{fill-opacity:.35}
.mark{stroke:var(--ink);stroke-width:1;stroke-dasharray:4 3}
.h1,.h2,.h3,.h4,.h5{fill:var(--train)}
.h1{fill-opacity:.15}.h2{fill-opacity:.32}.h3{fill-opacity:.52}.h4{fill-opacity:.75}
.h9{fill:var(--bad)}
.node{fill:var(--card);stroke:var(--rule)}
.node.end{stroke:var(--train);stroke-width:1.5}
.edge{fill:none;stroke:var(--grey);stroke-width:.8}
code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.9em;background:var(--card);padding:1px 5px;
border-radius:4px;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:4px}
th,td{padding:4px 12px 4px 0;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-weight:600}
thead th{color:var(--soft);vertical-align:bottom}
th:first-child{text-align:left}
td.long{white-space:normal;overflow-wrap:anywhere;min-width:11em;font-family:ui-monospace,Menlo,Consolas,monospace;
font-size:.85em}
td[class^=t]{padding-left:8px;padding-right:8px}
.t1{background:color-mix(in srgb,var(--train) 8%,transparent)}
.t2{background:color-mix(in srgb,var(--train) 18%,transparent)}
.t3{background:color-mix(in srgb,var(--train) 30%,transparent)}
.t4{background:color-mix(in srgb,var(--train) 44%,transparent)}
.t5{background:color-mix(in srgb,var(--train) 60%,transparent)}
.t8{background:color-mix(in srgb,var(--val) 35%,transparent)}
.t9{background:color-mix(in srgb,var(--bad) 40%,transparent)}
.checks{list-style:none;padding:0;margin:10px 0}
.checks li{display:flex;gap:12px;padding:7px 0;border-bottom:1px solid var(--rule)}
.checks b{flex:0 0 3.6em;color:var(--good)}
.checks .bad b{color:var(--bad)}
.checks div{min-width:0;overflow-wrap:anywhere}
@media (max-width:520px){body{padding:0 14px 30px;font-size:15px}h1{font-size:1.6rem}
.facts{grid-template-columns:1fr 1fr}table{font-size:.8rem}
th,td{padding-right:7px;white-space:normal}.heated td[class^=t]{padding:4px 5px}
.heated thead th:not(:first-child){writing-mode:vertical-rl;text-align:right}.checks li{gap:8px}}
@media print{body{max-width:none;font-size:11pt}nav{display:none}section,tr,.checks li{break-inside:avoid-page}
.scroll{overflow:visible}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
