"""Reads the English of scenes back, and says whether it is true of a scene graph (plain data as stored with every example).

It shares nothing with what wrote the English: its own vocabulary, its own phrase patterns, its own geometry. A word it does not
know is an error, so that no claim goes by unread. It imports nothing of the package on purpose.
"""

import re

SHAPES = {"circle", "square", "triangle", "star", "cross", "heart", "crescent", "arrow"}
PLURALS = {"circles", "squares", "triangles", "stars", "crosses", "hearts", "crescents", "arrows"}
COLOURS = {"red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black"}
SIZES = {"small": "small", "little": "small", "medium-sized": "medium", "mid-sized": "medium", "large": "large", "big": "large"}
LINES = {"outlined": True, "hollow": True, "filled": False, "solid": False}
NUMBERS = dict(zip(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(1, 11), strict=True))
HALF = {"small": 0.09, "medium": 0.14, "large": 0.2}
ANY_NOUN = {"thing": 1, "object": 1, "shape": 1, "figure": 1, "things": 2, "objects": 2, "shapes": 2, "figures": 2}

RELATIONS = {
    "to the left of": "left of",
    "on the left of": "left of",
    "left of": "left of",
    "to the right of": "right of",
    "on the right of": "right of",
    "right of": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
    "on top of": "on top of",
    "standing on": "on top of",
    "resting on": "on top of",
    "sitting on": "on top of",
    "inside": "inside",
    "within": "inside",
    "enclosed by": "inside",
    "surrounded by": "inside",
    "contained in": "inside",
}
CONVERSE = {
    "to its left": "left of",
    "on its left": "left of",
    "to its right": "right of",
    "on its right": "right of",
    "above it": "above",
    "over it": "above",
    "below it": "below",
    "under it": "below",
    "on top of it": "on top of",
    "inside it": "inside",
    "within it": "inside",
}
HOLDING = {"supports": "on top of", "carries": "on top of", "contains": "inside", "surrounds": "inside", "encloses": "inside"}
CORNERS = {f"{v} {h}": (v, h) for v in ("upper", "lower") for h in ("left", "right")}
PLACES = {
    **{f"in the {c}": c for c in CORNERS},
    **{f"in the {c} corner": c for c in CORNERS},
    **{f"at the {'top' if v == 'upper' else 'bottom'} {h}": c for c, (v, h) in CORNERS.items()},
    **{f"in the {'top' if v == 'upper' else 'bottom'} {h} corner": c for c, (v, h) in CORNERS.items()},
    **{f"{p} the {s}": s for p in ("on", "at") for s in ("left", "right")},
    **{f"on the {s} side": s for s in ("left", "right")},
    **{f"{p} the {s}": s for p in ("at", "near") for s in ("top", "bottom")},
    "in the upper part": "top",
    "in the lower part": "bottom",
    "in the centre": "centre",
    "in the middle": "centre",
    "at the centre": "centre",
}
BACKGROUNDS = {
    "plain": "plain",
    "striped": "stripes",
    "checked": "checks",
    "dotted": "dots",
    "noisy": "noise",
    "shaded": "gradient",
    "stripes": "stripes",
    "checks": "checks",
    "dots": "dots",
    "noise": "noise",
    "a gradient": "gradient",
}
MEDIUM = "(?:picture|image|drawing)"
# Words that claim nothing, in the order in which they are looked for.
FILLERS = [
    rf"in (?:the|this) {MEDIUM}",
    rf"an? {MEDIUM} (?:of|with|showing)",
    rf"(?:the|this) {MEDIUM} (?:also )?(?:shows|has|says)",
    "you can (?:also )?see",
    "can (?:also )?be seen",
    "there (?:is|are)(?: also)?",
    "here (?:is|are)",
    "we see",
    "show me",
    "draw",
    "paint",
    "(?:is|are)(?: shown)?",
    "that is",
    "being",
    "appears",
    "placed|positioned|located|drawn|printed",
    "together",
    "as well|also|too",
]


class Unreadable(ValueError):
    """English this parser does not know."""


class Phrase:
    """A noun phrase: attributes, how many it speaks of (None: not said), and whether it points to something known."""

    def __init__(self, attributes, count, definite):
        self.attributes, self.count, self.definite = attributes, count, definite

    def fits(self, graph):
        if self.count == "these":  # a pronoun: `attributes` are the objects it stands for
            return list(self.attributes)
        return [i for i, o in enumerate(graph["objects"]) if all(o[name] == value for name, value in self.attributes.items())]

    def __repr__(self):
        return f"<{self.count} {self.attributes}>"


def tokens(text):
    return re.findall(r'"[^"]*"|[a-z0-9-]+|[.,;?]', re.sub(r"[A-Z](?=[^\"]*(?:\"[^\"]*\"[^\"]*)*$)", lambda m: m[0].lower(), text))


def noun_phrase(words, i, nouns=ANY_NOUN):
    """(phrase, next position) of the noun phrase that starts at words[i], or None."""
    start, count, definite = i, None, False
    if words[i : i + 1] == ["the"]:
        i, definite, count = i + 1, True, 1
    elif words[i : i + 1] and words[i] in ("a", "an"):
        i, count = i + 1, 1
    elif words[i : i + 1] == ["any"]:
        i += 1
    if i < len(words) and (words[i] in NUMBERS or words[i].isdigit()):
        count = NUMBERS.get(words[i]) or int(words[i])
        i += 1
    attributes = {}
    while i < len(words) and _adjective(words[i], attributes):
        i += 1
    if i == len(words):
        return None
    noun = words[i]
    if noun in SHAPES:
        attributes["shape"] = noun
    elif noun in PLURALS:
        attributes["shape"] = noun.removesuffix("es") if noun == "crosses" else noun.removesuffix("s")
    elif noun not in nouns:
        return None
    if count is not None and (count == 1) != (noun in SHAPES or nouns.get(noun) == 1):
        raise Unreadable(f"{' '.join(words[start : i + 1])}: number and noun disagree")
    if start < len(words) - 1 and words[start] in ("a", "an") and (words[start] == "an") != (words[start + 1][0] in "aeiou"):
        raise Unreadable(f"{words[start]} {words[start + 1]}")
    i += 1
    if words[i : i + 1] == ["in"] and i + 1 < len(words) and words[i + 1] in COLOURS:
        attributes["colour"] = words[i + 1]
        i += 2
    elif i + 2 < len(words) and words[i] in ("that", "which") and words[i + 1] in ("is", "are") and _adjective(words[i + 2], {}):
        if (words[i + 1] == "is") != (noun in SHAPES or nouns.get(noun) == 1):
            raise Unreadable(f"{noun} {words[i]} {words[i + 1]}")
        i += 2
        while _adjective(words[i], attributes):
            more = words[i + 1 : i + 2] in ([","], ["and"]) and i + 2 < len(words) and _adjective(words[i + 2], {})
            i += 2 if more else 1
            if not more:
                break
    return Phrase(attributes, count, definite), i


def _adjective(word, attributes):
    """Writes what the word says into `attributes`; False if it is no adjective of this world."""
    for name, table in (("size", SIZES), ("outline", LINES), ("colour", {c: c for c in COLOURS})):
        if word in table:
            attributes[name] = table[word]
            return True
    return False


# Geometry, from the written definitions.


def half(o):
    return o.get("radius") or HALF[o["size"]]


def stands(a, name, b):
    dx, dy, both = a["x"] - b["x"], a["y"] - b["y"], half(a) + half(b)

    def on_top(upper, lower):
        up = lower["y"] - upper["y"]
        return abs(upper["x"] - lower["x"]) < 0.6 * half(lower) and abs(up - both) <= 0.02

    if name == "inside":
        return max(abs(dx), abs(dy)) <= half(b) - half(a)
    if name == "on top of":
        return on_top(a, b)
    if max(abs(dx), abs(dy)) < both:
        return False
    if name in ("left of", "right of"):
        return (-dx if name == "left of" else dx) >= 0.12 and abs(dx) >= abs(dy)
    if on_top(a, b) if name == "above" else on_top(b, a):
        return False
    return (-dy if name == "above" else dy) >= 0.12 and abs(dy) >= abs(dx)


def lies(o, place):
    x, y = o["x"], o["y"]
    if place == "centre":
        return max(abs(x - 0.5), abs(y - 0.5)) <= 0.08
    inside = {"left": x < 0.4, "right": x > 0.6, "top": y < 0.4, "upper": y < 0.4, "bottom": y > 0.6, "lower": y > 0.6}
    return all(inside[part] for part in place.split())


# Captions.


def items(sentence):
    """A sentence's words as a list of (kind, value): noun phrases, relations, places, words, backgrounds, marks."""
    out, i = [], 0
    while i < len(sentence):
        rest = " ".join(sentence[i:]) + " "
        for reader in (_drawn_word, _background, _elsewhere, _pronoun, _table, _filler, _mark, _phrase):
            if found := reader(rest):
                said, length = found
                out += [said] if said else []
                i += length
                break
        else:
            raise Unreadable(f"{sentence[i]!r} in {' '.join(sentence)!r}")
    return out


# Readers of one item: (what stands first in the rest of a sentence or None if it claims nothing, its number of words), or None.


def _drawn_word(rest):
    named = r'(?:the (?:(?P<before>\w+) )?(?:word|text|writing) )?"(?P<text>[^"]*)" '
    coloured = rf"(?:(?:is )?(?:written|drawn|printed) )?in (?P<after>{'|'.join(COLOURS)}) (?:letters )?"
    m = re.match(named + coloured, rest) or re.match(named + "(?P<after>)", rest)
    return m and (("word", (m["text"], m["before"] or m["after"] or None)), len(m[0].split()))


def _background(rest):
    on = r"(?:is drawn )?(?:is )?(?:on )?a"
    m = re.match(rf"{on} (\w+) background |{on} background with (a \w+|\w+) |the background (?:is|shows) (a \w+|\w+) ", rest)
    if m is None:
        return None
    word = m[1] or m[2] or m[3]
    if word not in BACKGROUNDS:
        raise Unreadable(f"background {word!r}")
    return ("background", BACKGROUNDS[word]), len(m[0].split())


def _elsewhere(rest):
    if m := re.match("there is nothing else |nothing else is shown ", rest):
        return ("nothing", None), len(m[0].split())
    m = re.match(rf"everything |this (?!{MEDIUM} |one )", rest)
    return m and (None, 1)


def _pronoun(rest):
    m = re.match(r"(?:it|this one) is ", rest)
    words, said, i = rest.split(), {}, len(m[0].split()) if m else 0
    if m is None or not _adjective(words[i], {}):
        return None
    while i < len(words) and (words[i] in (",", "and") or _adjective(words[i], said)):
        i += 1
    return ("it", said), i


def _table(rest):
    """Relations, their converses, and places: the longest that fits."""
    table = {key: ("relation", name) for key, name in RELATIONS.items()} | {key: ("place", name) for key, name in PLACES.items()}
    table |= {key: ("converse", name) for key, name in CONVERSE.items()}
    key = _longest(table, rest)
    return key and (table[key], len(key.split()))


def _filler(rest):
    m = re.match("|".join(f"(?:{f}) " for f in FILLERS), rest)
    be = m and re.search(r"\b(is|are)\b", m[0])
    return m and (("be", be[1]) if be else None, len(m[0].split()))


def _mark(rest):
    word = rest.split()[0]
    if re.match("one (?:in|on|at|near) ", rest):
        return ("one", None), 1
    if rest.startswith("the other "):
        return ("other", None), 2
    if word in HOLDING:
        return ("holds", HOLDING[word]), 1
    return ((word, None), 1) if word in ("with", "has", "and", ",", ";") else None


def _phrase(rest):
    found = noun_phrase(rest.split(), 0)
    return found and (("phrase", found[0]), found[1])


def _longest(table, rest):
    return max((key for key in table if rest.startswith(key + " ")), key=len, default=None)


def claims(text):
    """All that a caption claims, as tuples whose first is count, relation, place, places, word, background or it."""
    out, current, last = [], [], None
    for token in [*tokens(text), "."]:
        if token != ".":
            current.append(token)
        elif current:
            said = items(current)
            out += _claims(said, last)
            last = next((v for k, v in said if k == "phrase"), last)
            current = []
    return out


def _claims(said, last):
    out = [("count", value) for kind, value in said if kind == "phrase"]
    said = _agreeing(said)
    subject = place = name = None  # of the clause read so far; what stood before any noun
    holder = None  # what has, or is drawn with, something
    k = 0
    while k < len(said):
        kind, value = said[k]
        following = said[k + 1] if k + 1 < len(said) else (None, None)
        if kind in ("phrase", "word"):
            if kind == "word":
                out.append(("word", *value))
            if place:
                out.append(("place", value, place) if kind == "phrase" else ("word place", place))
                place = None
            if name and kind == "phrase":
                out.append(("relation", value, *name))
                name = None
            subject = value if kind == "phrase" else "word"
        elif kind == "place":
            if subject is None:
                place = value
            else:
                out.append(("word place", value) if subject == "word" else ("place", subject, value))
        elif kind == "relation":
            if following[0] != "phrase":
                raise Unreadable(f"{value} what? {said}")
            k += 1
            if subject is None:
                name = (value, following[1])
            else:
                out.append(("relation", subject, value, following[1]))
                holder = subject
        elif kind in ("with", "has"):
            holder = subject
        elif kind == "converse":
            out.append(("relation", subject, value, holder))
        elif kind == "holds":
            k += 1
            out.append(("relation", following[1], value, subject))
        elif kind == "one":
            _, one, _, _, other = said[k : k + 5]
            out.append(("places", subject, one[1], other[1]))
            k += 4
        elif kind == "background":
            out.append(("background", value))
        elif kind == "it":
            out.append(("it", last, value))
        elif kind in ("and", ",", ";") and not name:
            subject = subject if following[0] in ("one", "place") else None
        k += 1
    if place or name:
        raise Unreadable(f"a place or relation of nothing: {said}")
    return out


def _agreeing(said):
    """Without its verbs, each of which has to agree with what it is said of."""
    before, out = [], []
    for k, (kind, value) in enumerate(said):
        if kind == "be":
            after = next((v for kk, v in said[k + 1 :] if kk == "phrase"), None)
            inverted = not any(kk in ("phrase", "word") for kk, _ in before) or (before and before[0][0] == "relation")
            told = after if inverted else None
            if not inverted and len([1 for kk, _ in before if kk in ("phrase", "word")]) == 1 and before[0][0] != "word":
                told = next(v for kk, v in before if kk == "phrase")
            if isinstance(told, Phrase) and told.count and (told.count > 1) != (value == "are"):
                raise Unreadable(f"{value} of {told.count}: {said}")
        else:
            out.append((kind, value))
        before.append((kind, value))
    return out


def false_claims(text, graph):
    """Those claims of a caption that a scene graph does not bear out; [] if all is true."""
    return [claim for claim in claims(text) if not _true(claim, graph)]


def _true(claim, graph):
    objects = graph["objects"]
    match claim:
        case ("count", phrase):
            return len(phrase.fits(graph)) == phrase.count
        case ("relation", one, name, other):
            a, b = one.fits(graph), other.fits(graph)
            return len(a) == len(b) == 1 and stands(objects[a[0]], name, objects[b[0]])
        case ("place", phrase, place):
            return all(lies(objects[i], place) for i in phrase.fits(graph))
        case ("places", phrase, one, other):
            a, b = (objects[i] for i in phrase.fits(graph))
            return lies(a, one) and lies(b, other)
        case ("word", text, colour):
            return bool(graph["word"]) and graph["word"]["text"] == text and colour in (None, graph["word"]["colour"])
        case ("word place", place):
            return lies(graph["word"], place)
        case ("background", kind):
            return graph["background"]["kind"] == kind
        case ("it", phrase, attributes):
            (i,) = phrase.fits(graph)
            return all(objects[i][name] == value for name, value in attributes.items())
    raise AssertionError(claim)


# Questions. Noun phrases become N, relations R, attributes A, the picture M; patterns over these letters say what is asked.

NP = "(N)"
REFERENCE = r"(N)(?: (?:that is |placed |positioned |located |drawn )?R (N))?"
SAME = r"(?:of |with |that has |have )?the same A as"


def coded(text, about, nouns=("thing", "object", "things", "objects")):
    """(the question over the letters, its noun phrases, its relations, its attributes)."""
    words, out, phrases, relations, attributes, i = tokens(text), [], [], [], [], 0
    table = {noun: ANY_NOUN[noun] for noun in nouns}
    while i < len(words):
        rest = " ".join(words[i:]) + " "
        if re.match(rf"the {MEDIUM} ", rest):
            out.append("M")
            i += 2
        elif m := re.match("(it|that one|them|those) (?!true that )", rest):
            out.append("N")
            phrases.append(Phrase(about, "these", True))
            i += len(m[1].split())
        elif key := _longest(RELATIONS, rest):
            out.append("R")
            relations.append(RELATIONS[key])
            i += len(key.split())
        elif rest.startswith(("the other ", "another ")):
            n = 3 if rest.startswith("the other ") else 2
            out.append("OTHER")
            i += n
        elif found := noun_phrase(words, i, table):
            out.append("N")
            phrases.append(found[0])
            i = found[1]
        elif _adjective(words[i], {}):
            said = {}
            _adjective(words[i], said)
            out.append("J")
            phrases.append(Phrase(said, None, False))
            i += 1
        elif words[i] in ("colour", "shape", "size"):
            out.append("A")
            attributes.append(words[i])
            i += 1
        else:
            out.append(words[i])
            i += 1
    return " ".join(out), phrases, relations, attributes


SET = "(?:placed|positioned|located|drawn)"
RELATED = rf"N (?:that is |{SET} )?R N"
OTHER = "OTHER (?:of|with|that has) the same A as N"
WHAT = ["what A is {} [?]", "what is the A of {} [?]", "which A does {} have [?]", "{} has what A [?]", "of what A is {} [?]"]
PATTERNS = [
    ("exist", "is there N [?]|are there N [?]|does M show N [?]|can you see N [?]|are N shown [?]|is N in M [?]"),
    ("count", "how many N (?:are there|can you see|are in M|does M show) [?]|what is the number of N [?]"),
    ("count either", "how many N or N (?:are there|can you see) [?]"),
    ("count either, of all", "how many N are N or N [?]"),
    ("query", "|".join(w.format("N") for w in WHAT)),
    ("how big", "how J is N [?]"),
    (
        "more",
        "are there more N than N [?]|(?:does M show|can you see) more N than N [?]|is the number of N greater than the number of N [?]",
    ),
    (
        "fewer",
        "are there fewer N than N [?]|(?:does M show|can you see) fewer N than N [?]|is the number of N smaller than the number of N [?]",
    ),
    ("equal", "(?:are there|does M show) as many N as N [?]|is the number of N (?:the same as|equal to) the number of N [?]"),
    ("stands", f"is N (?:{SET} )?R N [?]|can N be seen R N [?]|is it true that N is R N [?]|does N appear R N [?]"),
    ("related query", "|".join(w.format(RELATED) for w in WHAT)),
    ("related shape", f"(?:what|which) A is (?:{SET} )?R N [?]"),
    ("related count", f"how many N are (?:there |{SET} )?R N [?]|how many N can you see R N [?]"),
    ("alike", "is N the same A as N [?]|do N and N have the same A [?]|are N and N of the same A [?]|does N have the same A as N [?]"),
    ("same exist", "(?:is there anything else of|does anything else have|is there OTHER that has) the same A as N [?]"),
    ("is it", "is N J [?]|would you call N J [?]"),
    ("of them", "how many of N are J [?]"),
    ("any of them", "(?:are|is) any of N J [?]"),
    ("same query", "|".join(w.format(OTHER) for w in WHAT)),
]


def answer(question, graph, about=()):
    """The answer to a question, worked out from its words and the scene graph alone; Unreadable if it refers to none or several.

    `about`: the objects "it", "that one", "them" and "those" stand for.
    """
    code, phrases, relations, attributes = coded(question.removeprefix("And "), about)
    form = next((name for name, pattern in PATTERNS if re.fullmatch(pattern, code)), None)
    if form is None:
        raise Unreadable(f"{question!r}: {code}")
    objects = graph["objects"]
    fits = [phrase.fits(graph) for phrase in phrases]

    def one(found):
        if len(found) != 1:
            raise Unreadable(f"{question!r} speaks of one, there are {len(found)}")
        return found[0]

    def beside(found, name, other):
        return [i for i in found if i != other and stands(objects[i], name, objects[other])]

    def others(i, name):
        return [j for j, o in enumerate(objects) if j != i and o[name] == objects[i][name]]

    match form:
        case "exist":
            value = bool(fits[0])
        case "count":
            value = len(fits[0])
        case "count either":
            value = len({*fits[0], *fits[1]})
        case "count either, of all":
            value = len({*fits[1], *fits[2]} & {*fits[0]})
        case "query":
            value = objects[one(fits[0])][attributes[0]]
        case "how big":
            value = objects[one(fits[1])]["size"]
        case "more":
            value = len(fits[0]) > len(fits[1])
        case "fewer":
            value = len(fits[0]) < len(fits[1])
        case "equal":
            value = len(fits[0]) == len(fits[1])
        case "stands":
            value = stands(objects[one(fits[0])], relations[0], objects[one(fits[1])])
        case "related query":
            value = objects[one(beside(fits[0], relations[0], one(fits[1])))][attributes[0]]
        case "related shape":
            value = objects[one(beside(range(len(objects)), relations[0], one(fits[0])))]["shape"]
        case "related count":
            value = len(beside(fits[0], relations[0], one(fits[1])))
        case "alike":
            value = objects[one(fits[0])][attributes[0]] == objects[one(fits[1])][attributes[0]]
        case "is it":
            value = one(fits[0]) in fits[1]
        case "of them":
            value = len({*fits[0]} & {*fits[1]})
        case "any of them":
            value = bool({*fits[0]} & {*fits[1]})
        case "same exist":
            value = bool(others(one(fits[0]), attributes[0]))
        case "same query":
            value = objects[one(others(one(fits[0]), attributes[1]))][attributes[0]]
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
