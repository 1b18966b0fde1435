"""Values said literally, in scripts with and without spaces between words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.dialogue import Turn, normalise, windows
from proactor.dialogue.dialogue import fold
from proactor.dialogue.literal import find, says


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        # Chinese
        ("我想预订明天晚上七点在北京饭店的桌子。", "北京饭店", True),
        ("我想预订明天晚上七点在北京饭店的桌子。", "上海", False),
        ("请帮我取消订单５１８７７，谢谢！", "51877", True),
        ("请帮我取消订单151877，谢谢！", "51877", False),
        ("帮我订3张去广州的票", "3", True),
        ("帮我订13张去广州的票", "3", False),
        ("我的邮箱是ＬＩ@example.com", "li@example.com", True),
        # Japanese
        ("明日の１８時に田中さんの名前で４名予約してください。", "18時", True),
        ("明日の１８時に田中さんの名前で４名予約してください。", "4", True),
        ("明日の１８時に田中さんの名前で４名予約してください。", "8時", False),
        ("明日の１８時に田中さんの名前で４名予約してください。", "田中", True),
        ("ホテルはｱﾊﾟﾎﾃﾙでお願いします", "アパホテル", True),
        ("コーヒーをください", "コーヒー", True),
        ("コーヒーをください", "コーヒ", False),
        ("きゃくです", "き", False),
        ("東京へTokyo Hotelの予約", "Tokyo Hotel", True),
        # Thai
        ("ช่วยจองโต๊ะที่ร้านส้มตำคืนนี้สองทุ่มครับ", "ร้านส้มตำ", True),
        ("ช่วยจองโต๊ะที่ร้านส้มตำคืนนี้สองทุ่มครับ", "สองทุ่ม", True),
        ("ยกเลิกคำสั่งซื้อ 51877 ให้หน่อยค่ะ", "51877", True),
        ("ไปเกาะสมุย", "กา", False),
        ("ไปเกาะสมุย", "เกาะสมุย", True),
        ("กินข้าว", "ก", False),
        ("ขอ ๑๕ ใบ", "๕", False),
        # Arabic
        ("أريد حجز غرفة في القاهرة غدا", "القاهرة", True),
        ("أريد حجز غرفة في القاهرة غدا", "غد", False),
        ("رقم الطلب هو 51877، شكرا", "51877", True),
        # German
        ("Bitte liefern Sie in die Hauptstraße 5 in München.", "HAUPTSTRASSE 5", True),
        ("Bitte liefern Sie in die Hauptstra\N{LATIN SMALL LETTER SHARP S}e 5.", "Straße", False),
        ("Ich wohne in Mu\u0308nchen.", "München", True),
        ("Ich wohne in Mu\u0308nchen.", "Mu", False),
        ("Eine Rückerstattung, bitte", "Erstattung", False),
        # Korean, Hindi, and marks that compose with nothing
        ("서울에 가는 표를 예약해 주세요", "서울", True),
        ("동서울에 가는 표", "서울", False),
        ("कितना समय", "तना", False),
        ("x\u0330yz", "x", False),
        # English
        ("It's 5 pm (or so)", "5 PM", True),
        ("the categories", "cat", False),
        ("snake_case", "case", False),
        ("!?", "!", False),
    ],
)
def test_sentences(text: str, value: str, said: bool) -> None:
    assert says(text, value) is said
    turns = (Turn(index=1, speaker="agent", text="?"), Turn(index=2, speaker="user", text=text))
    assert windows.first_mention(turns, (value,)) == (2 if said else None)


LATIN = st.text("abcdefgäöüéñßåøабвгдежαβγδε0123456789", min_size=1, max_size=8)
HAN = st.text("我想预订明天晚上在北京饭店的桌子請取消訂單東京大阪名前時間", min_size=1, max_size=6)


@given(
    st.lists(LATIN, max_size=5), LATIN, st.lists(LATIN, max_size=5), st.sampled_from([" ", ", ", "\n", "-"])
)
def test_a_word_of_a_spaced_text_is_found(before: list[str], value: str, after: list[str], gap: str) -> None:
    text = gap.join([*before, value, *after])
    assert says(text, value) and says(text.upper(), value)


@given(st.lists(LATIN, max_size=4), LATIN, LATIN, st.booleans())
def test_a_part_of_a_longer_word_is_not(others: list[str], value: str, rest: str, at_start: bool) -> None:
    longer = value + rest if at_start else rest + value
    if normalise(value) not in map(normalise, others):
        assert not says(" ".join([*others, longer]), value)


@given(HAN, HAN, HAN, LATIN)
def test_without_spaces_a_value_is_found_wherever_it_stands(
    before: str, value: str, after: str, word: str
) -> None:
    assert says(before + value + after, value) and says(before + word + after, word)


@given(st.text(max_size=30), st.text(max_size=6))
def test_places_hold_the_value(text: str, value: str) -> None:
    for start, end in find(text, value):
        assert re.sub(r"\s+", " ", fold(text)[start:end]) == " ".join(fold(value).split())


@given(st.text(max_size=20))
def test_folding_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_full_width_values_compare_equal() -> None:
    assert normalise("５１８７７。") == normalise("51877") and normalise("「東京」") == "東京"
