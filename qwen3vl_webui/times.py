"""Seconds and what people and models write for them, in English and Chinese: clocks, units, ranges, named spans.

Every pattern is bounded and is tried inside a window of WINDOW characters, so the cost is linear in the text and an
answer that streams needs to hold back no more than that to decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WINDOW = 48  # no written time, with the word after it that may change its meaning, is read beyond this
LOOKBEHIND = 40  # characters before a time that may say it is none ("for", "score")

NUMERALS = "零〇一二两兩三四五六七八九十百"
_FOLD = str.maketrans("０１２３４５６７８９：．，～〜＜＞－−　\u00a0\u202f\u2009\t", "0123456789:.,~~<>--     ")
_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}


@dataclass(frozen=True)
class FoundTime:
    """`text[start_index:end_index]` says the second `start`, or the span from `start` to `end`."""

    start_index: int
    end_index: int
    start: float
    end: float | None = None


def fold(text: str) -> str:
    """Full-width digits, colons and spaces as ASCII, character by character: every index stays what it was."""
    return text.translate(_FOLD)


def format_clock(seconds: float, digits: int = 0) -> str:
    """`45:10` under an hour, else `01:45:10`. Cut to `digits` of the second, not rounded: it never runs ahead."""
    units = int(max(0.0, seconds) * 10**digits + 1e-6)
    whole, fraction = divmod(units, 10**digits)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    clock = f"{hours:02d}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"
    return f"{clock}.{fraction:0{digits}d}" if digits else clock


def number(text: str) -> float:
    """Of ASCII digits or Chinese numerals up to 999 (`四十五`, `一百二十`, `四五`). Raises ValueError for others."""
    if text[:1] not in NUMERALS:
        return float(text)
    total, digit = 0, 0
    for character in text:
        if character in "十百":
            total += (digit or 1) * (10 if character == "十" else 100)
            digit = 0
        else:
            digit = digit * 10 + _DIGITS[character]
    return float(total + digit)


# One amount: a clock, or hours, minutes and seconds.
_N = rf"(?:\d{{1,6}}(?:\.\d{{1,6}})?|[{NUMERALS}]{{1,5}})"
_H = r"(?:[个個]?小[时時]|[时時]|(?:hours?|hrs?|h)(?![A-Za-z]))"
_M = r"(?:分[钟鐘]?|(?:minutes?|mins?|m)(?![A-Za-z]))"
_S = r"(?:秒[钟鐘]?|(?:seconds?|secs?|s)(?![A-Za-z]))"
_AND = r"(?:,? (?:and )?|零|第 ?)?"
_CLOCK = re.compile(
    r"(?:(\d{1,2}):([0-5]\d):([0-5]\d(?:[.,]\d{1,6})?)|(\d{1,3}):([0-5]\d(?:\.\d{1,6})?))(?![\d:]|[.,]\d|[A-Za-z])"
)
_UNITS = re.compile(
    rf"(?:({_N}) ?({_H}))?(?:(?(1){_AND})({_N}) ?({_M}))?(?:(?(1){_AND}|(?(3){_AND}))({_N}) ?({_S}))?", re.IGNORECASE
)
_ORDINAL = re.compile(r"(\d{1,5})(?:(?:st|nd|rd|th) |-)(second|minute)(?![A-Za-z])( mark)?", re.IGNORECASE)
_LABEL = re.compile(r"<(\d{1,6}(?:\.\d{1,6})?) ?(?:seconds?|s)>", re.IGNORECASE)
_TO = re.compile(
    r"(?: ?(?:-{1,2}>?|→|–|—{1,2}|~|至|到) ?| (?:to|until|till|through) )(?:about )?(第 ?)?", re.IGNORECASE
)
_PAIR = re.compile(r" and (?:about )?| ?[和与與] ?(第 ?)?", re.IGNORECASE)
_BARE = re.compile(rf"({_N})(?![\d.]| ?%)")
_BARE_PAIR = re.compile(
    rf"({_N})(?: ?(?:-|–|—|~|至|到) ?| to )(?:第 ?)?({_N}) ?(?:({_H})|({_M})|({_S}))", re.IGNORECASE
)

# What stands before or after and decides whether it is a moment of a video.
_GLUED = re.compile(rf"(?:[A-Za-z_:/+$#\d{NUMERALS}]|\d[.,])$")
_BOOKS = (
    "Genesis|Gen|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|Samuel|Kings|Chronicles|Job|Psalms?|Proverbs"
    "|Ecclesiastes|Isaiah|Jeremiah|Ezekiel|Daniel|Hosea|Matthew|Matt|Mark|Luke|John|Acts|Romans|Corinthians|Galatians"
    "|Ephesians|Philippians|Colossians|Thessalonians|Timothy|Hebrews|James|Peter|Revelation|Qur'?an|Surah|verses?"
)
_NO_CLOCK_BEFORE = re.compile(
    rf"(?:\b(?:scored?|scores|ratio|aspect|odds|scale|won|beat|lost|chapter|tied|{_BOOKS})"
    r"|比分|比例|比率|[宽寬长長]高比|[纵縱]横比|赔率|以|上午|下午|早上|早晨|晚上|中午|凌晨|傍晚|夜里|今晚|福音|诗篇|经|书信"
    r"|\d{4}[-/年.]\d{1,2}[-/月.]\d{1,2}日?)"
    r" ?(?:was|is|of|by|at|are|:|为|是|到)? ?(?:about )?$",
    re.IGNORECASE,
)
_NO_CLOCK_AFTER = re.compile(
    r" ?(?:[ap]\.?m\b|o'clock|aspect|ratio|scale|odds|score|win\b|GMT|UTC|[PECM][SD]T\b|的?比[分例]|[宽寬]高比|画幅)",
    re.IGNORECASE,
)
_DURATION_BEFORE = re.compile(
    r"(?:\b(?:for|lasts?|lasted|lasting|every|within|takes?|took|over|another|additional|spans|spanning|per|each|an?"
    r"|(?:first|last|next|final|previous|past|other)|(?:duration|length|runtime)(?: is| of|:)?|total(?: of)?"
    r"|wait(?:s|ed)?)"
    r" ?(?:(?:about|approximately|around|roughly|nearly|only|just|exactly|at least|at most|up to) )?"
    r"|(?:持续|持續|历时|长达|[长長]度|时长|時長|每|每?隔|间隔|总共|全长|用时|耗时|花了|[长長]约|最后|前|仅|只有|超过|不到|等待|等了|共)"
    r"[约為为是了:有]? ?)$",
    re.IGNORECASE,
)
_DURATION_AFTER = re.compile(
    r"(?:[ -](?:long|later|earlier|ago|apart|each|per|remaining|left|delay|clip|video|videos|window|interval|segments?"
    r"|before|after|intervals|duration|pause|countdown|timer)(?![A-Za-z])"
    r"|之?[后後前][^面方]|之?[后後前]$|[以之]?[内內]|[长長]|的?[视視]频|的片|的[时時][间間長长]|[时時][长長])",
    re.IGNORECASE,
)
_MOMENT_BEFORE = re.compile(
    r"(?:\b(?:at|around|near|by|from|after|until|till|to|since|before|between|timestamp|minute|second)"
    r"(?: about| around| roughly)? (?:the )?|[在从從到至于於][大约約]{0,2} ?)$",
    re.IGNORECASE,
)
_MOMENT_AFTER = re.compile(r" (?:mark|in(?:to)?)(?![A-Za-z])|[处處]|的?[时時](?:候|刻)|左右", re.IGNORECASE)
_UNIT_FIRST = re.compile(
    r"\b(?:at|from|around|to|in|by|until|and|between) (?:about )?(second|minute)s? $", re.IGNORECASE
)
_DECADE = re.compile(r"(?:1\d\d0|20\d0)s$")
_SHORT_DECADE = re.compile(r"(?:\b(?:the|early|late|mid)|['’])[ -]?$", re.IGNORECASE)
_BETWEEN = re.compile(r"\bbetween(?: about)? $", re.IGNORECASE)

# Where a time or page may begin, and how far the text goes on looking like one: an answer that streams waits that long.
CANDIDATE = re.compile(rf"[\d第{NUMERALS}]|<(?=\d)")
REACH = re.compile(
    rf"(?:[\d{NUMERALS}:,<> ~–—→第时時分秒钟鐘小个個至到和与與之以内內后後前"
    r"长長的处處候刻左右视視频片间間段面方页頁半比宽寬高画%'-]"
    r"|pp?\. ?|\.(?=\d|\Z|[ap]?m|m)"
    r"|(?:hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s|st|nd|rd|th|to|until|till|through|and|about|in|pages?|pp?|mark)"
    r"(?![A-Za-z]))*(?:[A-Za-z']{0,12}\.?[A-Za-z]?)",
    re.IGNORECASE,
)

_SKIP = re.compile(rf"\d+|[{NUMERALS}]+|.", re.DOTALL)


@dataclass(frozen=True)
class _Amount:
    end: int
    seconds: float
    units: str  # "clock", "label", or which of "hms" are there
    words: str = ""  # the unit words as written
    chinese: bool = False  # its number is a Chinese numeral


def _amount(text: str, index: int, stop: int) -> _Amount | None:
    """The amount written at `index` of folded text, whatever it means."""
    if found := _LABEL.match(text, index, stop):
        return _Amount(found.end(), float(found[1]), "label")
    if found := _CLOCK.match(text, index, stop):
        hours, minutes, seconds = found[1] or 0, found[2] or found[4], (found[3] or found[5]).replace(",", ".")
        return _Amount(found.end(), int(hours) * 3600 + int(minutes) * 60 + float(seconds), "clock")
    if (found := _UNITS.match(text, index, stop)) and found.end() > index:
        parts = [
            (name, found[group], found[group + 1], scale)
            for name, group, scale in (("h", 1, 3600), ("m", 3, 60), ("s", 5, 1))
        ]
        parts = [part for part in parts if part[1]]
        seconds = sum(number(value) * scale for _, value, _, scale in parts)
        units, words = "".join(part[0] for part in parts), " ".join(part[2] for part in parts)
        return _Amount(found.end(), seconds, units, words.lower(), parts[0][1][0] in NUMERALS)
    return None


def _is_moment(text: str, index: int, stop: int, amount: _Amount, end: int, ordinal: bool) -> bool:
    """Whether an amount is a moment of a video rather than a duration, a score, a ratio or the time of day."""
    before = text[max(0, index - LOOKBEHIND) : index]
    if amount.units == "label":
        return True
    if amount.units == "clock":
        return not _NO_CLOCK_BEFORE.search(before) and not _NO_CLOCK_AFTER.match(text, end, stop)
    if ordinal:
        return amount.words not in ("时", "時", "m", "h")
    if amount.chinese and len(amount.units) == 1:
        return False
    if _DURATION_BEFORE.search(before) or _DURATION_AFTER.match(text, end, stop):
        return False
    if len(amount.units) > 1:
        return True
    if amount.units == "s":
        decade = _DECADE.match(text, index, end) or (text[index:end].endswith("0s") and _SHORT_DECADE.search(before))
        return not decade
    if amount.words in ("h", "m", "时", "時", "分"):
        return False
    return bool(_MOMENT_BEFORE.search(before) or _MOMENT_AFTER.match(text, end, stop))


def read_time(text: str, index: int) -> tuple[FoundTime | None, int]:
    """The time or range that begins exactly at the CANDIDATE `index` of folded text, and where to look on. Only WINDOW
    characters ahead are read; what is written like a time and is none is passed over whole."""
    stop = min(len(text), index + WINDOW)
    before = text[max(0, index - LOOKBEHIND) : index]
    skip = _SKIP.match(text, index)
    assert skip is not None
    if _GLUED.search(before):
        return None, skip.end()
    at = index
    ordinal = text[at] == "第"
    if ordinal:
        at += 2 if text[at + 1 : at + 2] == " " else 1
    amount = _amount(text, at, stop)
    if amount is None:
        found = _unusual(text, index, at, stop, before, ordinal)
        return found, found.end_index if found else skip.end()
    end = _range_end(text, amount, stop, before)
    last = end.end if end else amount.end
    if not _is_moment(text, index, stop, amount, last, ordinal):
        return None, last
    if end is None or end.seconds <= amount.seconds:
        return FoundTime(index, amount.end, amount.seconds), amount.end
    return FoundTime(index, last, amount.seconds, end.seconds), last


def _range_end(text: str, amount: _Amount, stop: int, before: str) -> _Amount | None:
    """The second amount of a range whose first is `amount`."""
    joint = _TO.match(text, amount.end, stop)
    if joint is None and (joint := _PAIR.match(text, amount.end, stop)):
        chinese = joint[0].strip()[:1] in "和与與"
        if not chinese and not _BETWEEN.search(before):
            return None
        end = _amount(text, joint.end(), stop)
        return end if end and (not chinese or text[end.end : end.end + 2] in ("之间", "之間")) else None
    end = _amount(text, joint.end(), stop) if joint else None
    kinds = {"clock", "label"}
    return end if end and (end.units in kinds) == (amount.units in kinds) else None


def _unusual(text: str, index: int, at: int, stop: int, before: str, ordinal: bool) -> FoundTime | None:
    """`10-20秒`, `the 47th second`, `10-minute mark`, `at second 47`."""
    if pair := _BARE_PAIR.match(text, at, stop):
        scale, units = (3600, "h") if pair[3] else (60, "m") if pair[4] else (1, "s")
        start, end = number(pair[1]) * scale, number(pair[2]) * scale
        words = (pair[3] or pair[4] or pair[5]).lower()
        amount = _Amount(pair.end(), start, units, words, pair[1][0] in NUMERALS)
        if end <= start or not _is_moment(text, index, stop, amount, pair.end(), ordinal):
            return None
        return FoundTime(index, pair.end(), start, end)
    if (found := _ORDINAL.match(text, at, stop)) and ("-" not in found[0] or found[3]):
        return FoundTime(index, found.end(), float(found[1]) * (60 if found[2].lower() == "minute" else 1))
    if (unit := _UNIT_FIRST.search(before)) and (found := _BARE.match(text, at, stop)) and not ordinal:
        return FoundTime(index, found.end(), number(found[1]) * (60 if unit[1].lower() == "minute" else 1))
    return None


def find_times(text: str) -> list[FoundTime]:
    """Every moment or range of a video that a text names, in order. Durations, scores, ratios, dates, verses and times
    of the day with `pm` or 下午 are none of them; whether a time lies inside a video is for the caller to check."""
    folded, times, index = fold(text), [], 0
    while candidate := CANDIDATE.search(folded, index):
        found, index = read_time(folded, candidate.start())
        if found:
            times.append(found)
    return times


def read_seconds(value: object) -> tuple[float, float | None] | None:
    """What a field of a JSON answer says: 12.5, "12.5", "12.5s", "00:23.00", "00:23.00 - 00:48.00". None for others."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (float(value), None) if 0 <= value < 1e7 else None
    if not isinstance(value, str) or len(value) > 2 * WINDOW:
        return None
    text = fold(value).strip(" []()")
    if re.fullmatch(r"\d{1,6}(?:\.\d{1,6})?", text):
        return float(text), None
    first = _amount(text, 1 if text[:1] == "第" else 0, len(text))
    if first is None:
        return None
    if first.end == len(text):
        return first.seconds, None
    end = _range_end(text, first, len(text), "")
    return (first.seconds, end.seconds) if end and end.end == len(text) and end.seconds > first.seconds else None


# Spans a question names.
_UNITS_UP_TO_NINE = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_WORDS = {"zero": 0} | {word: value for value, word in enumerate(_UNITS_UP_TO_NINE + _TEENS, 1)}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_NUMBER_WORD = re.compile(
    rf"\b(?:({'|'.join(_TENS)})(?:[- ]({'|'.join(_UNITS_UP_TO_NINE)}))?|({'|'.join(_WORDS)}))\b", re.IGNORECASE
)
_PHRASES = (
    (re.compile(r"\bhalf an? hour|\bhalf hour", re.IGNORECASE), "30 minutes"),
    (re.compile(r"\bhalf an? minute|\bhalf minute", re.IGNORECASE), "30 seconds"),
    (re.compile(r"\b(?:a )?quarter of an hour", re.IGNORECASE), "15 minutes"),
    (re.compile(r"\ba couple of (?=minutes|seconds|hours)", re.IGNORECASE), "2 "),
    (re.compile(r"\ban? (?=minute|second|hour)", re.IGNORECASE), "1 "),
    (re.compile(r"半个?小时|半個?小時"), "30分钟"),
    (re.compile(r"半分[钟鐘]"), "30秒"),
    (re.compile(r"一刻[钟鐘]"), "15分钟"),
    (re.compile(r"([" + NUMERALS + r"\d]{1,4})分[钟鐘]?半"), r"\1分30秒"),
)
_LAST = re.compile(r"\b(?:last|final|closing) |(?:最[后後末]|末尾|[结結]尾|倒数|后面|最终)的? ?", re.IGNORECASE)
_FIRST = re.compile(r"\b(?:first|opening|initial) |(?:最?前|[开開][头頭始]|最初|头)的? ?", re.IGNORECASE)
_LONE_UNIT = re.compile(r"(minute|hour)(?![A-Za-z])", re.IGNORECASE)
_HALVES = re.compile(
    r"(\bfirst half\b|前半(?:段|部分|程|场)?|上半[段场部])"
    r"|(\b(?:second|last|latter) half\b|[后後]半(?:段|部分|程|场)?|下半[段场部])",
    re.IGNORECASE,
)
_AFTER_WORD = re.compile(
    r"\b(?:after|since|past|beyond|from|starting (?:at|from)) (?:the )?(?:time )?$|(?:自从|从|自) ?$", re.IGNORECASE
)
_AFTER_SUFFIX = re.compile(
    r" ?(?:之[后後]|以[后後]|[后後]|[开開]始|起|onwards?|and (?:on|after)|to the end|until the end"
    r"|到最?[后後]|到[结結][尾束])",
    re.I,
)
_BEFORE_WORD = re.compile(r"\b(?:before|until|till|up to|prior to) (?:the )?$|(?:直到|截至|截止到?) ?$", re.IGNORECASE)
_BEFORE_SUFFIX = re.compile(r" ?(?:之前|以前|前)")
_MINUTES_TO = re.compile(
    r"\b(minute|second)s? (\d{1,6}(?:\.\d{1,6})?)(?: ?(?:-|–|~) ?| (?:to|and|until|through) )"
    r"(?:(?:minute|second)s? )?(\d{1,6}(?:\.\d{1,6})?)\b(?!:)",
    re.IGNORECASE,
)


def _digits(match: re.Match[str]) -> str:
    if match[3]:
        return str(_WORDS[match[3].lower()])
    return str(_TENS[match[1].lower()] + _WORDS.get((match[2] or "zero").lower(), 0))


def find_span(question: str, duration: float) -> tuple[float, float] | None:
    """The span of a video of `duration` seconds that a question names (`the last ten minutes`, `第45分钟到第50分钟`,
    `after 1:02:00`), cut to the video; None when it names none, only a single moment, or one outside the video."""
    text = fold(question)
    for phrase, plain in _PHRASES:
        text = phrase.sub(plain, text)
    text = _NUMBER_WORD.sub(_digits, text)
    span = _span(text, duration)
    if span is None:
        return None
    start, end = max(0.0, span[0]), min(duration, span[1])
    return (start, end) if start < end else None


def _span(text: str, duration: float) -> tuple[float, float] | None:
    for time in find_times(text):
        if time.end is not None:
            return time.start, time.end
    if pair := _MINUTES_TO.search(text):
        scale = 60 if pair[1].lower() == "minute" else 1
        return float(pair[2]) * scale, float(pair[3]) * scale
    for pattern, last in ((_LAST, True), (_FIRST, False)):
        for found in pattern.finditer(text):
            length = _length(text, found.end())
            if length:
                return (duration - length, duration) if last else (0.0, length)
    if halves := _HALVES.search(text):
        return (0.0, duration / 2) if halves[1] else (duration / 2, duration)
    index = 0
    while candidate := CANDIDATE.search(text, index):
        at = candidate.start()
        begin = at + (1 if text[at] == "第" else 0)
        begin += text[begin : begin + 1] == " "
        amount = (
            None if _GLUED.search(text[max(0, at - 2) : at]) else _amount(text, begin, min(len(text), begin + WINDOW))
        )
        if amount is None:
            skip = _SKIP.match(text, at)
            assert skip is not None
            index = skip.end()
            continue
        index = amount.end
        before = text[max(0, at - LOOKBEHIND) : at]
        if amount.units == "clock" and not _is_moment(text, at, len(text), amount, amount.end, False):
            continue
        suffix = _AFTER_SUFFIX.match(text, amount.end)
        if _BEFORE_WORD.search(before) or (not suffix and _BEFORE_SUFFIX.match(text, amount.end)):
            return 0.0, amount.seconds
        if suffix or _AFTER_WORD.search(before):
            return amount.seconds, duration
    return None


def _length(text: str, index: int) -> float | None:
    """The duration written at `index`; `minute` or `hour` alone is one of them."""
    if unit := _LONE_UNIT.match(text, index):
        return 60.0 if unit[1].lower() == "minute" else 3600.0
    amount = _amount(text, index, min(len(text), index + WINDOW))
    return amount.seconds if amount and amount.words not in ("时", "時", "分", "m", "h") else None
