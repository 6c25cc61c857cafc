"""The typefaces of the printed words: which are trained on, and which are kept for dev and test.

No family is in two splits, and neither is a design under another name: Carlito is Lato's, Hack
DejaVu's, so neither is used. All have capitals, small letters and digits, and all licences are
free; `FONTS.md` has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import packages

SPLITS = ("train", "dev", "test")
LICENCES = {
    "fonts-averia-serif-gwf": "OFL-1.1",
    "fonts-anonymous-pro": "OFL-1.1",
    "fonts-arapey": "OFL-1.1",
    "fonts-b612": "OFL-1.1, EPL-2.0, EDL-1.0",
    "fonts-cabin": "OFL-1.1",
    "fonts-cantarell": "OFL-1.1",
    "fonts-clear-sans": "Apache-2.0",
    "fonts-comfortaa": "OFL-1.1",
    "fonts-comic-neue": "OFL-1.1",
    "fonts-courier-prime": "OFL-1.1",
    "fonts-crosextra-caladea": "OFL-1.1",
    "fonts-dejavu-core": "Bitstream Vera",
    "fonts-dkg-handwriting": "OFL-1.1",
    "fonts-dosis": "OFL-1.1",
    "fonts-ebgaramond": "OFL-1.1",
    "fonts-freefont-otf": "GPL-3+ with font exception",
    "fonts-goudybookletter": "public domain",
    "fonts-jetbrains-mono": "Apache-2.0",
    "fonts-karla": "OFL-1.1",
    "fonts-lato": "OFL-1.1",
    "fonts-league-spartan": "OFL-1.1",
    "fonts-liberation2": "OFL-1.1",
    "fonts-linuxlibertine": "OFL-1.1, GPL-2+ with font exception",
    "fonts-national-park": "OFL-1.1",
    "fonts-noto-core": "OFL-1.1",
    "fonts-open-sans": "Apache-2.0",
    "fonts-opendyslexic": "CC BY 3.0, Bitstream Vera",
    "fonts-play": "OFL-1.1",
    "fonts-quattrocento": "OFL-1.1",
    "fonts-quicksand": "OFL-1.1",
    "fonts-roboto-slab": "Apache-2.0",
    "fonts-roboto-unhinted": "Apache-2.0",
    "fonts-sil-andika": "OFL-1.1",
    "fonts-sora": "OFL-1.1",
    "fonts-vollkorn": "OFL-1.1",
    "fonts-yanone-kaffeesatz": "OFL-1.1",
}
"""Package to the licence of its typefaces, from its `copyright` file."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """One typeface: a family in one weight.

    Attributes:
        split: Where its images go, one of `SPLITS`.
        family: What it belongs to; a family is in one split alone.
        package: The Debian package, a key of `LICENCES`.
        path: Its file, under `usr/share/fonts` of the package.
    """

    split: str
    family: str
    package: str
    path: str

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).stem

    def file(self, root: Path) -> Path:
        """The font file, its package downloaded on first use."""
        return packages.fetch(self.package, root) / "usr/share/fonts" / self.path


TABLE = """
train | DejaVu | dejavu-core | truetype/dejavu/DejaVuSans.ttf
train | DejaVu | dejavu-core | truetype/dejavu/DejaVuSans-Bold.ttf
train | DejaVu | dejavu-core | truetype/dejavu/DejaVuSerif.ttf
train | DejaVu | dejavu-core | truetype/dejavu/DejaVuSansMono.ttf
train | Liberation | liberation2 | truetype/liberation2/LiberationSans-Regular.ttf
train | Liberation | liberation2 | truetype/liberation2/LiberationSans-Bold.ttf
train | Liberation | liberation2 | truetype/liberation2/LiberationSerif-Regular.ttf
train | Liberation | liberation2 | truetype/liberation2/LiberationSerif-Bold.ttf
train | Liberation | liberation2 | truetype/liberation2/LiberationMono-Regular.ttf
train | FreeFont | freefont-otf | opentype/freefont/FreeSans.otf
train | FreeFont | freefont-otf | opentype/freefont/FreeSerif.otf
train | FreeFont | freefont-otf | opentype/freefont/FreeMonoBold.otf
train | Noto | noto-core | truetype/noto/NotoSans-Bold.ttf
train | Noto | noto-core | truetype/noto/NotoSerif-Regular.ttf
train | Lato | lato | truetype/lato/Lato-Regular.ttf
train | Lato | lato | truetype/lato/Lato-Bold.ttf
train | Roboto | roboto-unhinted | truetype/roboto/unhinted/RobotoTTF/Roboto-Regular.ttf
train | Roboto | roboto-unhinted | truetype/roboto/unhinted/RobotoTTF/Roboto-Bold.ttf
train | Roboto | roboto-slab | opentype/roboto/slab/RobotoSlab-Regular.otf
train | Open Sans | open-sans | truetype/open-sans/OpenSans-Regular.ttf
train | Cantarell | cantarell | opentype/cantarell/Cantarell-Regular.otf
train | B612 | b612 | opentype/b612/B612-Regular.otf
train | Comfortaa | comfortaa | truetype/comfortaa/Comfortaa-Bold.ttf
train | Dosis | dosis | opentype/dosis/Dosis-Medium.otf
train | Quicksand | quicksand | truetype/quicksand/Quicksand-Medium.ttf
train | Yanone | yanone-kaffeesatz | opentype/yanone-kaffeesatz/YanoneKaffeesatz-Regular.otf
train | Play | play | truetype/play/Play-Regular.ttf
train | Linux Libertine | linuxlibertine | opentype/linux-libertine/LinLibertine_R.otf
train | Linux Libertine | linuxlibertine | opentype/linux-libertine/LinBiolinum_RB.otf
train | Andika | sil-andika | truetype/andika/Andika-Regular.ttf
train | Anonymous Pro | anonymous-pro | truetype/anonymous-pro/Anonymous Pro.ttf
train | Arapey | arapey | opentype/arapey/Arapey-Regular.otf
train | Averia | averia-serif-gwf | truetype/averia-gwf/AveriaSerifGWF-Regular.ttf
train | League Spartan | league-spartan | opentype/league-spartan/LeagueSpartan-Bold.otf
train | Sora | sora | opentype/sora/Sora-Regular.otf
train | OpenDyslexic | opendyslexic | opentype/opendyslexic/OpenDyslexic-Regular.otf
train | Goudy Bookletter | goudybookletter | opentype/sortsmill/GoudyBookletter1911.otf
train | Quattrocento | quattrocento | opentype/quattrocento/Quattrocento-Regular.otf
train | National Park | national-park | opentype/national-park/NationalPark-Regular.otf
train | dkg handwriting | dkg-handwriting | truetype/fifthhorseman/dkgBd.ttf
dev | Karla | karla | truetype/karla/Karla-Regular.otf
dev | Vollkorn | vollkorn | truetype/vollkorn/Vollkorn-Medium.ttf
dev | JetBrains Mono | jetbrains-mono | truetype/jetbrains-mono/JetBrainsMono-Regular.ttf
test | Clear Sans | clear-sans | truetype/clear-sans/ClearSans-Regular.ttf
test | Cabin | cabin | opentype/cabin/Cabin-Bold.otf
test | Caladea | crosextra-caladea | truetype/crosextra/Caladea-Regular.ttf
test | EB Garamond | ebgaramond | opentype/ebgaramond/EBGaramond12-Regular.otf
test | Courier Prime | courier-prime | opentype/courier-prime/Courier Prime.otf
test | Comic Neue | comic-neue | opentype/comic-neue/ComicNeue-Bold.otf
"""
"""Split, family, package without its prefix, and file of each typeface."""


def _faces() -> list[Face]:
    rows = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
    return [Face(split=s, family=f, package=f"fonts-{p}", path=path) for s, f, p, path in rows]


FACES = _faces()


def faces(split: str) -> list[Face]:
    """The typefaces of a split."""
    return [face for face in FACES if face.split == split]


def table() -> str:
    """`FONTS.md`: every typeface with its package, version and licence."""
    lines = [
        "# Typefaces of the printed words",
        "",
        "Made by `python recipes/tiny/fonts.py` from the list there. Licences are those that the",
        "packages' `copyright` files name. No font is in the repository.",
        "",
        "| split | family | face | Debian package | version | licence |",
        "|---|---|---|---|---|---|",
    ]
    for f in FACES:
        cells = (f.split, f.family, f.name, f.package, packages.DEBIAN[f.package])
        lines.append(f"| {' | '.join(cells)} | {LICENCES[f.package]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "FONTS.md").write_text(table(), encoding="utf-8")
