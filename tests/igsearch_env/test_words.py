"""Words in scripts of many kinds: for search, evidence and scores of answers."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igsearch_env.answers import (
    contains_answer,
    cover_exact_match,
    exact_match,
    f1_score,
    normalize_answer,
)
from igsearch_env.episode import Document
from igsearch_env.retrieval.bm25 import BM25Retriever
from igsearch_env.words import folded, pieces, query_words, runs, search_terms, words

HOLDS = [
    ("2008年奥运会在北京举行。", "北京", True),
    ("2008年奥运会在北京举行。", "京北", False),
    ("2008年奥运会在北京举行。", "2008", True),
    ("2008年奥运会在北京举行。", "200", False),
    ("東京タワーは芝公園にある", "芝公園", True),
    ("ﾄｳｷｮｳ タワー", "トウキョウ", True),
    ("กรุงเทพมหานครเป็นเมืองหลวง", "กรุงเทพมหานคร", True),
    ("ວຽງຈັນເປັນນະຄອນຫຼວງ", "ວຽງຈັນ", True),
    ("ភ្នំពេញជារាជធានី", "ភ្នំពេញ", True),
    ("နေပြည်တော်သည်မြို့တော်ဖြစ်သည်", "နေပြည်တော်", True),
    ("서울은 한국의 수도이다", "서울", True),
    ("वह कल आएगा", "कला", False),
    ("वह कल आएगा", "कल", True),
    ("दिल्ली भारत में है", "दिल", False),
    ("சென்னை தமிழ்நாட்டில் உள்ளது", "சென்னை", True),
    ("القاهرة عاصمة مصر", "القاهرة", True),
    ("the soft\u00adware", "software", True),
    ("ＮＨＫ was founded", "NHK", True),
    ("E\u0301cole Normale", "école", True),
    ("Limassol", "Lima", False),
    ("It is 🦁, the king.", "🦁", True),
    ("It is 🐯, the king.", "🦁", False),
    ("I ❤\ufe0f Lima", "❤", True),
    ("flags:🇵🇪🇫🇷", "🇵🇪", True),
    ("love😀", "love", True),
    ("👩\u200d🚀 flies", "👩🚀", True),
    ("او می\u200cخواهم گفت", "میخواهم", True),
    ("او می\u200cخواهم گفت", "می خواهم", False),
]


@pytest.mark.parametrize(("text", "answer", "held"), HOLDS)
def test_whether_a_text_holds_an_answer(text: str, answer: str, held: bool) -> None:
    assert contains_answer(text, [answer]) is held
    assert cover_exact_match(text, [answer]) == float(held)


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ("🦁", "🦁"),
        ("H₂O", "H2O"),
        ("☀", "☀\ufe0f"),
        ("می\u200cخواهم", "میخواهم"),
        ("北京。", "北京"),
        ("「北京」", "北京"),
        ("“北京”", "北京"),
        ("Beijing。", "Beijing"),
        ("ＮＨＫ", "nhk"),
        ("２００８年", "2008年"),
        ("ｶﾞｽ", "ガス"),
        ("दिल्ली।", "दिल्ली"),
        ("القاهرة؟", "القاهرة"),
        ("Москва…", "москва"),
        ("\u200fالقاهرة", "القاهرة"),
        ("¿Lima?", "¿Lima"),
        ("STRASSE", "Straße"),
        ("ISTANBUL", "İstanbul"),
        ("ΟΔΟΣ", "οδοσ"),
        ("Москва\u0301", "Москва"),
        ("القَاهِرَة", "القاهرة"),
        ("שָׁלוֹם", "שלום"),
    ],
)
def test_answers_that_are_equal(given: str, gold: str) -> None:
    assert exact_match(given, [gold]) == f1_score(given, [gold]) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("🦁", "🐯"),
        ("10²", "102"),
        ("IŞIK", "ışık"),
        ("می خواهم", "می\u200cخواهم"),
        ("й", "и"),
        ("ё", "е"),
        ("ألف", "الف"),
        ("ß", "s"),
    ],
)
def test_answers_that_differ(one: str, other: str) -> None:
    assert exact_match(one, [other]) == 0.0


def test_f1_counts_characters_where_there_are_no_blanks() -> None:
    assert f1_score("中国北京", ["北京"]) == pytest.approx(2 * 2 / (4 + 2))
    assert f1_score("서울은", ["서울"]) == pytest.approx(2 * 2 / (3 + 2))
    assert f1_score("iPhone手机", ["手机"]) == pytest.approx(2 * 2 / (3 + 2))
    assert f1_score("कला", ["कल"]) == 0.0


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("中国的首都", "北京"),
        ("秘鲁", "利马"),
        ("水", "水"),
        ("日本の首都", "東京"),
        ("เมืองหลวงของไทย", "กรุงเทพ"),
        ("भारत की राजधानी", "दिल्ली"),
        ("서울", "서울특별시"),
        ("🦁", "lion"),
    ],
)
def test_bm25_finds_documents_of_every_script(query: str, title: str) -> None:
    pages = {
        "北京": "北京是中华人民共和国的首都。",
        "利马": "利马在秘鲁。",
        "水": "是一种化合物。",
        "東京": "東京は日本の首都である。",
        "กรุงเทพ": "กรุงเทพเป็นเมืองหลวงของประเทศไทย",
        "दिल्ली": "दिल्ली भारत की राजधानी है।",
        "서울특별시": "서울은 한국의 수도이다.",
        "Lima": "The capital of Peru.",
        "lion": "On its flag: 🦁.",
    }
    documents = [Document(name, name, text) for name, text in pages.items()]
    (found,) = BM25Retriever.build(documents).search([query], 3)
    assert found[0].title == title


def test_a_cluster_keeps_its_marks() -> None:
    assert pieces("ที่นี่") == ["ที่", "นี่"]
    assert words("विनय") == ["विनय"]
    assert search_terms("ที่นี่") == ["ที่", "นี่", "ที่นี่"]
    assert query_words("ที่นี่") == ["ที่นี่"]
    assert words("ភ្នំ\u200bពេញ") == words("ភ្នំ ពេញ")


@given(st.text(st.characters(max_codepoint=0x24F, exclude_categories=["M", "Cf", "Cs"])))
def test_latin_text_is_taken_apart_as_ever(text: str) -> None:
    """As the rules were before other scripts came: runs of word characters, SQuAD's answers."""
    lower = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    if any(unicodedata.combining(character) for character in lower):
        return
    expected = re.findall(r"\w+", lower)
    assert words(text) == search_terms(text) == runs(folded(text)) == expected
    if text.isascii():
        squad = re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in lower if c not in PUNCTUATION))
        assert normalize_answer(text) == " ".join(squad.split())


PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def test_digits_of_every_script_are_the_same_number() -> None:
    for year in ("२००८", "۲۰۰۸", "٢٠٠٨", "２００８", "๒๐๐๘"):
        assert words(year) == ["2008"]
        assert exact_match(year, ["2008"]) == 1.0
        assert contains_answer(f"in {year}.", ["2008"])
