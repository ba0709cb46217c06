"""What counts as a word, in any script: for search, for scores of answers and for evidence.

A word is a run of letters, digits and underscores, each with the combining marks that belong to
it. Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without blanks between words, and
Korean particles stick to theirs: there, every character is a word of its own. So is every emoji.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import groupby, pairwise
from typing import NamedTuple

WORD_RULE = "unicode-4"
"""Name of the rule, for manifests; it changes whenever a text may be taken apart differently."""

_LUCENE = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
_QUESTIONS = (
    "also been did do does from had has have he her his how its s she than were what when where "
    "which who whom whose why"
)
STOP_WORDS = frozenset([*_LUCENE.split(), *_QUESTIONS.split()])
"""Words that a query is searched without, unless it has no others. Documents keep them, so that a
query like "The Who" can be answered."""

_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_EMOJI = (  # blocks of pictures, without the brackets in them; joiners between them are no text
    "\u2300-\u2307\u230c-\u2328\u232b-\u23ff\u2600-\u2767\u2776-\u27bf\u2b00-\u2bff"
    "\U0001f000-\U0001faff"
)
_UNSPACED = _EMOJI + (
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai, without its digits
    "\u0e81-\u0ebd\u0ec0-\u0ece\u0edc-\u0edf"  # Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109f\ua9e0-\ua9ef\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17d3\u17d7\u17dc\u17dd"  # Khmer
    "\u1950-\u1974\u1980-\u19c9\u1a20-\u1a7c"  # Tai Le, New Tai Lue, Tai Tham
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb"  # Hangul
    "\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"  # Han
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f"  # Kana
    "\u3105-\u312f\u31a0-\u31bf\ua000-\ua48c"  # Bopomofo, Yi
)
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_OPTIONAL = re.compile(  # what most texts leave out, in composed form; last, vowels in Arabic
    "(?<=[\u0400-\u052f])[\u0300\u0301]"  # stress in Cyrillic
    "|[\ufe0e\ufe0f]"  # whether a sign is a picture or a letter
    "|[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"  # points in Hebrew
    "|[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]"
)
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")  # of H₂O; 10² is another number than 102
_WIDE = re.compile("[\uff01-\uffee]+")  # full-width Latin, half-width Kana and Hangul
_BEYOND_LATIN = re.compile(
    "[\u0370-\u1dff\u1f00-\u1fff\u2c80-\u2dff\u2e80-\ud7ff\uf900-\ufdff\ufe30-\ufeff"
    "\U00010000-\U0001efff\U00020000-\U0003ffff]"
)
_LAST = 0x1FFFF  # no mark or punctuation has a higher code, apart from variation selectors
_SELECTORS = "\U000e0100-\U000e01ef"


class _Patterns(NamedTuple):
    word: re.Pattern[str]
    piece: re.Pattern[str]
    punctuation: re.Pattern[str]
    format: re.Pattern[str]
    digit: re.Pattern[str]


@cache
def _patterns() -> _Patterns:
    """Made when the first text beyond ASCII comes: it takes some hundredths of a second."""
    marks = _ranges("M") + _SELECTORS
    return _Patterns(
        re.compile(rf"[\w{marks}{_EMOJI}]+"),
        re.compile(f"[{_UNSPACED}][{marks}]*|[^{_UNSPACED}]+"),
        re.compile(f"[{_ranges('P')}]+"),
        re.compile(f"[{_ranges('Cf')}]+"),
        re.compile(f"[{_ranges('Nd')}]"),
    )


def _ranges(category: str) -> str:
    """The characters of a Unicode category as the inside of a character class."""
    codes = (c for c in range(128, _LAST) if unicodedata.category(chr(c)).startswith(category))
    parts = []
    for _, group in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        run = [code for _, code in group]
        parts.append(f"{chr(run[0])}-{chr(run[-1])}")
    return "".join(parts)


def folded(text: str) -> str:
    """A text with differences taken out that say nothing: for comparing, not for showing.

    It comes case-folded (ß is ss, İ is i) and composed (NFC), with full-width letters and
    half-width Kana in their usual width, without invisible formatting (soft hyphens, joiners, marks
    of direction), and without the marks that most texts leave out: stress in Cyrillic, points in
    Hebrew, vowels in Arabic. Digits of every script, and those below the line, become those of
    ASCII, and a zero-width space a blank. A joiner or non-joiner parts no words, as in Unicode's
    rules of segmentation (UAX 29): Persian that is written with one equals what is written without,
    and differs from what is written with a blank. Case is Unicode's for all languages, in which ı
    is no form of I.

    >>> folded("ＮＨＫ") == "nhk", folded("E\u0301cole") == "école"
    (True, True)
    >>> folded("Straße"), folded("२००८")
    ('strasse', '2008')
    """
    if text.isascii():
        return text.lower()
    text = _WIDE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = _patterns().format.sub("", text.replace("\u200b", " "))
    text = text.translate(_SUBSCRIPTS)
    text = _patterns().digit.sub(lambda found: str(unicodedata.decimal(found[0])), text)
    text = unicodedata.normalize("NFC", text).casefold().replace("i\u0307", "i")
    return _OPTIONAL.sub("", unicodedata.normalize("NFC", text))


def without_punctuation(text: str) -> str:
    """A text without punctuation (Unicode's categories P), if it is in another script than Latin.

    Latin text keeps its dashes and curly quotes, as it does in the evaluation script of SQuAD.

    >>> without_punctuation("“北京。”"), without_punctuation("1939–1945")
    ('北京', '1939–1945')
    """
    return _patterns().punctuation.sub("", text) if _BEYOND_LATIN.search(text) else text


def runs(text: str) -> list[str]:
    """The runs of letters, digits, underscores, emoji and their marks, as they stand.

    >>> runs("Beyoncé's 2nd song"), runs("वह कल आएगा")
    (['Beyoncé', 's', '2nd', 'song'], ['वह', 'कल', 'आएगा'])
    """
    return _ASCII_WORD.findall(text) if text.isascii() else _patterns().word.findall(text)


def pieces(run: str) -> list[str]:
    """The words of a run without blanks: characters of scripts that need none stand alone.

    >>> pieces("iphone手机"), pieces("beyoncé")
    (['iphone', '手', '机'], ['beyoncé'])
    """
    return _patterns().piece.findall(run) if _HAS_UNSPACED.search(run) else [run]


def words(text: str) -> list[str]:
    """The words of a text, folded, in order.

    >>> words("2008年奥运会在Beijing举行。")
    ['2008', '年', '奥', '运', '会', '在', 'beijing', '举', '行']
    """
    text = folded(text)
    found = runs(text)
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return found
    return [piece for run in found for piece in pieces(run)]


def search_terms(text: str) -> list[str]:
    """The terms that a text is found by: its words, and each pair of neighbours in a run.

    Pairs are made in scripts without blanks only, where single characters say little.

    >>> search_terms("首都Lima")
    ['首', '都', '首都', 'lima']
    """
    return _terms(text, singles=True)


def query_words(query: str) -> list[str]:
    """The terms that a query is searched by: no stop words, unless there is nothing else.

    They are those of :func:`search_terms`, without the single characters that are in pairs.

    >>> query_words("Who wrote The Raven?"), query_words("The Who"), query_words("秘鲁的首都")
    (['wrote', 'raven'], ['the', 'who'], ['秘鲁', '鲁的', '的首', '首都'])
    """
    every = _terms(query, singles=False)
    return [word for word in every if word not in STOP_WORDS] or every


def _terms(text: str, singles: bool) -> list[str]:
    text = folded(text)
    found = runs(text)
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return found
    terms = []
    for run in found:
        for unspaced, group in groupby(pieces(run), lambda part: bool(_HAS_UNSPACED.match(part))):
            inner = list(group)
            pairs = [left + right for left, right in pairwise(inner)] if unspaced else []
            terms += inner if singles or not pairs else []
            terms += pairs
    return terms
