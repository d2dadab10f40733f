"""Make the fonts of all images, in ``clipcam_lightning/cam/fonts``, from Noto fonts.

``world.ttf`` has all scripts in one font, because Pillow shapes a line of mixed scripts and orders it from right to
left only within one font. It holds the letters of the most used scripts, the common Chinese characters (all of GB 2312
and JIS X 0208, the first level of Big5), all Hangul syllables, and emoji in one colour. ``latin.ttf`` is its Latin
part, with which text is measured ten times as fast.

    python -m pip download --no-deps manimgx-fonts==2026.9.26.post1  # Noto as it was published
    npm pack @expo-google-fonts/noto-sans-sc@0.4.3 @expo-google-fonts/noto-sans-kr@0.4.3
    python tools/make_font.py FOLDER  # with the .ttf files of all three
"""

import sys
import tempfile
from collections.abc import Iterable, Sequence, Set
from copy import deepcopy
from pathlib import Path

from fontTools.merge import Merger, Options as MergeOptions
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.ttLib.scaleUpem import scale_upem
from fontTools.varLib.instancer import instantiateVariableFont

FOLDER = Path(__file__).parents[1] / "clipcam_lightning" / "cam" / "fonts"
SCRIPTS = (
    "Arabic", "Armenian", "Bengali", "Devanagari", "Ethiopic", "Georgian", "Gujarati", "Gurmukhi", "Hebrew", "Kannada",
    "Khmer", "Lao", "Malayalam", "Myanmar", "Oriya", "Sinhala", "Tamil", "Telugu", "Thai",
)  # fmt: skip
LATIN = {*range(0x250)}
PUNCTUATION = {*range(0x2010, 0x2027)}
JOINERS = {0x200C, 0x200D, 0xFE0F}  # in words of many scripts, and in emoji that consist of several
JAPANESE = {*range(0x3000, 0x3100), *range(0x31F0, 0x3200), *range(0xFF00, 0xFFF0)}  # kana, and letters as wide
KOREAN = {*range(0x3131, 0x318F), *range(0xAC00, 0xD7A4)}  # letters and all syllables
LINE_HEIGHT = {
    "hhea": ("ascent", "descent", "lineGap"),
    "OS/2": ("sTypoAscender", "sTypoDescender", "sTypoLineGap", "usWinAscent", "usWinDescent"),
}
NAMES = [0, 13, 14]  # copyright and licence
UNUSED = ["vhea", "vmtx", "STAT"]  # tables that a horizontal line at one weight does not need
UNITS_PER_EM, WEIGHT = 1000, 400


def make_fonts(sources: Path) -> dict[str, TTFont]:
    """Subset and merge the fonts of a folder.

    Args:
        sources: folder with the Noto fonts.

    Returns:
        The fonts by file name.
    """
    fonts = {
        "latin.ttf": _subset(sources / "NotoSans[wght].ttf", only=LATIN | PUNCTUATION),
        "world.ttf": _merge(_list_parts(sources)),
    }
    for font in fonts.values():
        _rename(font)
    _copy_line_height(fonts["latin.ttf"], fonts["world.ttf"])
    return fonts


def _list_parts(sources: Path) -> list[TTFont]:
    """List what the font of all scripts consists of; a character is in several parts only where it joins others."""
    western = _subset(sources / "NotoSans[wght].ttf")
    scripts = [_subset(sources / f"NotoSans{script}[wght].ttf", without=LATIN) for script in SCRIPTS]
    taken = {*western.getBestCmap()}
    emoji = _subset(sources / "NotoEmoji[wght].ttf", without=taken - JOINERS)
    _enable_in_all_scripts(emoji, {tag for font in (western, *scripts) for tag in _list_scripts(font)})
    taken.update(*(font.getBestCmap() for font in (*scripts, emoji)))
    symbols = _subset(sources / "NotoSansSymbols[wght].ttf", without=taken)
    chinese = _subset(sources / "NotoSansSC_400Regular.ttf", only=_list_chinese() | JAPANESE, without=taken)
    korean = _subset(sources / "NotoSansKR_400Regular.ttf", only=KOREAN, without=taken)
    for font in (chinese, korean):  # their features are for vertical lines and for variants
        del font["GSUB"], font["GPOS"]
    return [western, *scripts, emoji, symbols, chinese, korean]


def _merge(parts: Sequence[TTFont]) -> TTFont:
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, f"{i}.ttf")) for i in range(len(parts))]
        for part, file in zip(parts, files, strict=True):
            part.save(file)
        merged = Merger(MergeOptions(drop_tables=UNUSED)).merge(files)
    _unify_joiners(merged)
    return merged


def _unify_joiners(font: TTFont) -> None:
    """Let the ligatures of all parts have the joiners that the merged font maps characters to."""
    kept = {name.partition(".")[0]: name for name in (font.getBestCmap()[each] for each in JOINERS)}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in (getattr(each, "ExtSubTable", each) for each in lookup.SubTable):
            for ligatures in getattr(table, "ligatures", {}).values():
                for ligature in ligatures:
                    ligature.Component = [kept.get(each.partition(".")[0], each) for each in ligature.Component]


def _subset(
    file: Path,
    *,
    only: Set[int] | None = None,
    without: Set[int] = frozenset(),
) -> TTFont:
    """Reduce a font to one weight, to some characters and to what drawing needs.

    Args:
        file: of the font.
        only: characters to keep, of those that the font has; ``None``: all.
        without: characters to drop.
    """
    font = TTFont(file)
    if "fvar" in font:
        axes = {axis.axisTag: axis.defaultValue for axis in font["fvar"].axes}
        instantiateVariableFont(font, {**axes, "wght": WEIGHT}, inplace=True)
    scale_upem(font, UNITS_PER_EM)
    options = Options(hinting=False, notdef_outline=True, name_IDs=NAMES)
    subsetter = Subsetter(options)
    characters = {*font.getBestCmap()} - without
    subsetter.populate(unicodes=characters if only is None else characters & only)
    subsetter.subset(font)
    return font


def _list_chinese() -> set[int]:
    """List the common characters of Chinese and Japanese."""
    common = {
        *_decode_all("gb2312", range(0xB0, 0xF8)),
        *_decode_all("big5", range(0xA4, 0xC7)),
        *_decode_all("euc_jp", range(0xA1, 0xF5)),
    }
    return {each for each in common if each >= 0x3000}


def _decode_all(encoding: str, leads: Iterable[int]) -> set[int]:
    """List the characters of an encoding whose first byte is one of ``leads``."""
    texts = (bytes([lead, trail]).decode(encoding, "ignore") for lead in leads for trail in range(0x40, 0xFF))
    return {ord(text) for text in texts if len(text) == 1}


def _list_scripts(font: TTFont) -> list[str]:
    tables = [font[tag].table for tag in ("GSUB", "GPOS") if tag in font]
    return [record.ScriptTag for table in tables if table.ScriptList for record in table.ScriptList.ScriptRecord]


def _enable_in_all_scripts(font: TTFont, scripts: Iterable[str]) -> None:
    """Let the features of a font for the default script work within text of all scripts.

    An emoji has no script of its own; it is shaped with the features of the text around it.
    """
    script_list = font["GSUB"].table.ScriptList
    (default,) = script_list.ScriptRecord
    for tag in sorted({*scripts} - {default.ScriptTag}):
        record = deepcopy(default)
        record.ScriptTag = tag
        script_list.ScriptRecord.append(record)
    script_list.ScriptCount = len(script_list.ScriptRecord)


def _rename(font: TTFont) -> None:
    """Give the font a name of its own, as its licence asks for."""
    for record in list(font["name"].names):
        if record.nameID not in NAMES:
            font["name"].removeNames(record.nameID)
    for identifier, text in ((1, "Clipcam Sans"), (2, "Regular"), (4, "Clipcam Sans"), (6, "ClipcamSans-Regular")):
        font["name"].setName(text, identifier, 3, 1, 0x409)


def _copy_line_height(source: TTFont, font: TTFont) -> None:
    """Let a line of text be as high with one font as with the other."""
    for table, names in LINE_HEIGHT.items():
        for name in names:
            setattr(font[table], name, getattr(source[table], name))


if __name__ == "__main__":
    for name, made in make_fonts(Path(sys.argv[1])).items():
        made.save(FOLDER / name)
        print(f"{name}: {made['maxp'].numGlyphs} glyphs, {(FOLDER / name).stat().st_size / 1e6:.1f} MB")
