"""Text in any script: every letter has a glyph, right to left is shaped, and lines break where readers expect it."""

from functools import cache

import pytest
from PIL import Image, ImageDraw, features

from clipcam_lightning.cam.lettering import LATIN, font, shorten, text_width, wrap

SIZE = 32
SCRIPTS = {
    "Latin": "a photo of a naïve façade — Łódź, ħ ŋ ſ",
    "Greek": "κόκκινη αλεπού",
    "Cyrillic": "рыжая лиса, їжак, ћирилица",
    "Chinese": "一只狐狸在雪地里奔跑，背景是红色的水印。",
    "traditional Chinese": "一隻狐狸在雪地上奔跑，龜龍憂鬱",
    "Japanese": "雪の上を走る赤い狐「キツネ」ー々",
    "Korean": "눈 위를 달리는 붉은 여우 뷁 ㄱㅏ",
    "Arabic": "ثعلب أحمر يركض على الثلج، پچژگ ٣",
    "Hebrew": "שועל אדום רץ על השלג",
    "Devanagari": "बर्फ़ पर दौड़ती लोमड़ी क्षत्रिय",
    "Thai": "สุนัขจิ้งจอกสีแดงวิ่งบนหิมะ",
    "Bengali": "বরফে লাল শিয়াল",
    "Tamil": "பனியில் நரி",
    "Georgian": "მელა თოვლში",
    "Armenian": "աղվես",
    "Ethiopic": "ቀበሮ",
    "Khmer": "កញ្ជ្រោង",
    "emoji": "🦊🐈🛋🌊⭐",
}


@cache
def drawn(text: str) -> bytes:
    return bytes(font(SIZE, text).getmask(text))


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_no_letter_is_drawn_as_the_box_of_a_missing_one(text: str) -> None:
    missing = drawn("\U0010fffd")  # for private use: in no font
    assert any(missing)
    assert not [letter for letter in text if drawn(letter) == missing]


def test_the_common_characters_of_east_asia_have_glyphs() -> None:
    encodings = {"gb2312": (0xB0, 0xF8), "euc_jp": (0xB0, 0xF5), "euc_kr": (0xB0, 0xC9)}
    missing = drawn("\U0010fffd")
    for encoding, leads in encodings.items():
        for lead in range(*leads):
            row = "".join(bytes([lead, trail]).decode(encoding, "ignore") for trail in range(0xA1, 0xFF))
            assert not [letter for letter in row if drawn(letter) == missing], encoding


def test_the_latin_font_draws_as_the_font_of_all_scripts_does() -> None:
    text = "".join(map(chr, range(0x20, 0x7F)))
    assert bytes(font(SIZE, text).getmask(text)) == bytes(font(SIZE).getmask(text))
    for letter in sorted(LATIN):
        assert font(SIZE, letter).getlength(letter) == font(SIZE).getlength(letter), letter
    assert font(SIZE, "a").getmetrics() == font(SIZE).getmetrics(), "on the same base line"


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow does not shape text")
@pytest.mark.parametrize(
    ("whole", "parts"),
    [("سلام", "س ل ا م"), ("क्षि", "क ् ष ि"), ("🐈\u200d⬛", "🐈 ⬛"), ("👩🏽\u200d🚀", "👩🏽 🚀"), ("🇫🇷", "🇫 🇷")],
    ids=["Arabic", "Devanagari", "black cat", "astronaut", "flag"],
)
def test_letters_join(whole: str, parts: str) -> None:
    assert text_width(whole, SIZE) < 0.9 * sum(text_width(part, SIZE) for part in parts.split())


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow does not shape text")
def test_emoji_join_within_text_of_other_scripts() -> None:
    alone = text_width("🐈\u200d⬛", SIZE)
    for text in ("a", "я", "狐", "あ", "한", "ש", "ث", "ก", "ა"):
        assert text_width(f"{text}🐈\u200d⬛", SIZE) == pytest.approx(text_width(text, SIZE) + alone, abs=2)


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow does not shape text")
def test_hebrew_is_drawn_from_right_to_left() -> None:
    page = Image.new("L", (2 * SIZE, 2 * SIZE))
    ImageDraw.Draw(page).text((0, 0), "א.", 255, font(SIZE))
    dot, letter = page.crop((0, 0, text_width(".", SIZE), 2 * SIZE)), page.crop((SIZE // 2, 0, 2 * SIZE, 2 * SIZE))
    assert dot.getbbox()[1] > letter.getbbox()[1] + SIZE // 4, "the full stop is low, and on the left"


@pytest.mark.parametrize("script", ["Chinese", "traditional Chinese", "Japanese"])
def test_a_script_without_spaces_is_broken_between_characters(script: str) -> None:
    text = SCRIPTS[script] * 3
    lines = wrap(text, 20, 200, 9)
    assert "".join(lines) == text
    assert all(text_width(line, 20) > 140 for line in lines[:-1]), "lines are full"
    assert not [line for line in lines if line[0] in "，。」ー々"], "punctuation stays with what it follows"
    assert not [line for line in lines if line[-1] == "「"]


def test_words_stay_whole_beside_chinese() -> None:
    lines = wrap("fox 狐狸 running 奔跑 in the snow 雪地 " * 3, 20, 110, 20)
    assert {"fox", "running", "snow"} <= set(" ".join(lines).split())
    assert len(lines) > 5


def test_a_word_wider_than_a_line_is_broken() -> None:
    lines = wrap("x" * 40 + " end", 20, 200, 9)
    assert "".join(lines).replace(" ", "") == "x" * 40 + "end"
    assert len(lines) > 1


@pytest.mark.parametrize("whole", ["क्षि", "👩🏽\u200d🚀", "é"], ids=["syllable", "emoji", "accent"])
def test_a_text_is_not_cut_within_what_a_reader_sees_as_one_character(whole: str) -> None:
    for cut in (shorten(whole * 30, 20, 200), *wrap(whole * 30, 20, 200, 2)):
        assert cut.removesuffix("…") == whole * cut.count(whole)


def test_no_font_of_the_system_is_needed() -> None:
    paths = {str(each.path) for each in (font(SIZE), font(SIZE, "a"))}
    assert len(paths) == 2
    assert all("clipcam_lightning" in path for path in paths)
