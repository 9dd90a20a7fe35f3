"""The style sheet of report.html: light and dark, wide and narrow screens."""

COLOURS = 10  # of curves and points, classes c0 to c9

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1c1e21;--soft:#565c64;--line:#d9dce0;--card:#fff;--link:#0b57d0;
--warn:#8a3b00;--warnbg:#fff3e2;
--c0:#0064b0;--c1:#b34700;--c2:#00734f;--c3:#9c2f7c;--c4:#6b5700;--c5:#4b45b5;--c6:#b3261e;--c7:#00707a;--c8:#5c5f66;
--c9:#6d4c2f}
@media (prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e8eaed;--soft:#a9b0b9;--line:#363b42;--card:#1d2024;
--link:#8ab4f8;--warn:#ffc48a;--warnbg:#3a2a17;
--c0:#6cb6ff;--c1:#ff9d5c;--c2:#57d3a3;--c3:#f08fd0;--c4:#e0c84d;--c5:#aaa5ff;--c6:#ff8f87;--c7:#5cd0da;--c8:#b9bec7;
--c9:#d3a988}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem 1rem 4rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
a{color:var(--link)}p{margin:.4rem 0}.soft{color:var(--soft)}
.skip{position:absolute;left:-999rem}.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem 1rem;z-index:1}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;list-style:none;margin:.6rem 0}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1rem}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1rem;align-items:start}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem;min-width:0}
figcaption{font-size:.9rem;color:var(--soft);margin-bottom:.4rem}figcaption b{color:var(--fg)}
img{display:block;max-width:100%;height:auto;background:#fff;border-radius:4px;margin:auto}
svg{display:block;width:100%;height:auto}
.grid{stroke:var(--line);fill:none}.tick{font-size:11px;fill:var(--soft)}.line{fill:none;stroke-width:1.8;
stroke-linejoin:round}.dashed{stroke-dasharray:5 4}
.dot{fill:none;stroke-width:4.5;stroke-linecap:round;stroke-opacity:.75}.none{stroke:var(--soft)}
.scroll{margin-bottom:.8rem;overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}
.pairs{margin-bottom:1rem}caption{text-align:left;padding:.4rem .7rem 0}
table{border-collapse:collapse;width:100%;font-size:.92rem;overflow-wrap:normal}
th,td{text-align:left;padding:.35rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
tbody tr:last-child>*{border-bottom:0}
td,th{max-width:28rem;min-width:7.4rem;overflow-wrap:anywhere}td.long{min-width:14rem}
.keys span{display:inline-block}.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
.note{background:var(--warnbg);color:var(--warn);border-radius:8px;padding:.6rem .9rem;margin:.5rem 0}
.note ul{margin:.2rem 0;padding-left:1.2rem}
details{margin:.8rem 0}summary{cursor:pointer;font-weight:600;padding:.3rem 0}
@media (max-width:30rem){.tick{font-size:16px}}
@media (max-width:50rem){.grid-of .tick{font-size:16px}svg{overflow:visible}thead{position:absolute;left:-999rem}
table,caption,tbody,tr,tbody th{display:block}tr{padding:.4rem .7rem;border-bottom:1px solid var(--line)}
tbody tr:last-child{border-bottom:0}tbody th,td,td.long{min-width:0;max-width:none;padding:0;border:0}
td{display:inline-block;margin-right:1rem}td.dash{display:none}
td::before{content:attr(data-head)": ";color:var(--soft)}}
""" + "".join(
    f".c{i}{{stroke:var(--c{i})}}.fill.c{i},.key.c{i}{{fill:var(--c{i});background:var(--c{i});stroke:none}}"
    for i in range(COLOURS)
)
