"""The style of the page, behind that of all pages."""

from __future__ import annotations

STYLE = """
body { max-width: 980px; }
.table { overflow-x: auto; margin: 8px 0; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: 4px 8px; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; } td { white-space: nowrap; }
td.long { white-space: normal; min-width: 15em; }
h3 { font-size: 1rem; margin: 22px 0 4px; }
section { border-top: 1px solid var(--line); margin-top: 32px; }
summary { cursor: pointer; font-size: .9rem; margin: 6px 0; }
.asked { margin: 0; opacity: .75; }
.pick { position: absolute; opacity: 0; pointer-events: none; }
.tokens { display: flex; flex-wrap: wrap; gap: 6px; margin: 12px 0 4px; position: sticky; top: 0;
  background: var(--paper); padding: 8px 0; z-index: 1; max-height: 40vh; overflow-y: auto; }
.tokens label { border: 1px solid var(--line); border-radius: 8px; padding: 3px 10px;
  cursor: pointer; white-space: pre; background: var(--soft); line-height: 1.35; }
.tokens label small { display: block; font-size: .7rem; opacity: .75; }
.tokens label:hover { border-color: #d9622b; }
.panel { display: none; }
.figures { display: flex; flex-wrap: wrap; gap: 14px; margin: 10px 0; align-items: flex-start; }
figure { margin: 0; } figcaption { font-size: .82rem; overflow-wrap: anywhere; margin-top: 4px; }
.over { width: clamp(200px, calc(33.3% - 10px), 300px); } .over.small { width: 104px; }
.over.small figcaption { font-size: .74rem; margin-top: 2px; }
.seen { position: relative; border-radius: 6px; overflow: hidden; background: var(--soft);
  border: 1px solid var(--line); }
.seen::before { content: ""; position: absolute; inset: 0; background: var(--picture) 0 0/100% 100%;
  filter: grayscale(1) brightness(.82); }
.seen.plain::before { filter: none; }
.seen i { position: absolute; inset: 0; background-size: 100% 100%; image-rendering: pixelated; }
.shares { display: flex; height: 14px; border-radius: 7px; overflow: hidden; margin: 10px 0 4px; }
.shares i { display: block; height: 100%; }
.legend i { height: 11px; width: 11px; border-radius: 3px; vertical-align: baseline; }
.bar-of { width: 130px; height: 10px; background: var(--soft); border-radius: 5px;
  overflow: hidden; }
.bar-of i { display: block; height: 100%; background: #d9622b; }
.strip { display: block; width: 210px; height: 18px; background: var(--soft) 0 0/100% 100%;
  image-rendering: pixelated; border-radius: 3px; }
.bars td { padding: 2px 8px; } .bars td.word, .near td { font-family: ui-monospace, monospace; }
.near td { text-align: center; border: 1px solid var(--line); max-width: 11em;
  overflow: hidden; text-overflow: ellipsis; }
.near td small { display: block; opacity: .6; font-family: system-ui, sans-serif; }
.near th { white-space: nowrap; vertical-align: middle; font-weight: 500; }
.near thead th { text-align: center; font-weight: 600; }
.gates { display: block; }
.callout { border-left: 4px solid #d9622b; background: var(--soft); padding: 10px 14px;
  border-radius: 0 8px 8px 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 600px) { .over { width: calc(50% - 7px); } .over.small { width: 30%; }
  .gates text { font-size: 12px; } .strip { width: 130px; } .bar-of { width: 80px; } }
@media print { .panel { display: block; } .tokens { position: static; } }
"""


def picking(count: int) -> str:
    """Shows the panel of the token that is picked, of so many, with no script."""
    shown = ",".join(f"#t{n}:checked~.panels .p{n}" for n in range(count))
    marked = ",".join(f'#t{n}:checked~.tokens label[for="t{n}"]' for n in range(count))
    focused = ",".join(f'#t{n}:focus-visible~.tokens label[for="t{n}"]' for n in range(count))
    return (
        f"{shown}{{display:block}}"
        f"{marked}{{background:#d9622b;border-color:#d9622b;color:#fff}}"
        f"{focused}{{outline:3px solid #2f6fde;outline-offset:1px}}"
    )
