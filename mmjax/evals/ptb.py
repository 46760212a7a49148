"""Penn Treebank tokens as the COCO caption evaluation makes them, without Java.

That evaluation runs Stanford CoreNLP 3.4.1's PTBTokenizer with lower-casing and then drops a list of punctuation tokens. Here is
a lexer of our own for what occurs in captions, written from what that program puts out and held to it (tests/golden/captions): words
with inner hyphens, slashes and periods, contractions, abbreviations, initials, numbers, times, money, fractions, brackets, tags,
emoticons, addresses, hash tags. Of the rules that match at a place the longest match counts, what it looks ahead at included, then
the first: so lexer generators do it. On 91,309 captions (Flickr8k, SugarCrepe, abstract scenes) not one token differed.

Habits of the reference that one would not guess, kept because scores depend on them: brackets survive, because the list of what is
dropped has them in capitals while tokens are in small letters ("-lrb-"); so do runs such as "!!" and "??", emoticons, and a dash of
five hyphens or more; "cannot", "gonna", "y'all" come apart; an initial keeps its period ("player b. is"), unless a word follows that
often begins a sentence. One is not kept: it reads all captions as one text, so the tokens of a caption that ends in an initial or in
"no." depend on how the next caption begins. Here a caption stands alone.
"""

import re

# What coco-caption drops. Its list also has "-LRB-" and the like, which lower-cased tokens never equal.
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Words that keep their period wherever they stand; those that need a capital for it; those that need a number behind.
_ABBREVIATIONS = """adm al ala alex apr ariz assn assoc asst attys? aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co col colo
    comdr conn corp cos cpl ct dak dec dept drs? elec esq est etc ext feb fla fri ft ga gen govs? hon inc ind insp intl jan jos jr jul
    jun kans? ky lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mrs? ms msgr mt mtg natl neb nev nov oct okla penn pfc ph\\.d
    ph plc pres prof pte pty pvt rd reps? rev sens? sept? seq sgt sq sr st ste supt tel tenn thu thurs treas tues? univ va vs vt wed wisc?
    wm wyo"""
_CAPITALISED = "Ark Del Ill La Mass Miss Ore Pa Tex Wash ARK DEL ILL LA MASS MISS ORE PA TEX WASH"
_BEFORE_NUMBERS = "art ca figs? nos? op pp prop"
# Words that begin sentences: after them, capitalised, an initial's period ends the sentence before.
_OPENERS = """A About According After An As At But He Her Here However If In It Last Many More Now Once One Other Our She Since So Some
    Such That The Their Then There These They This We What When While Yet You"""

_any = lambda words: "|".join(words.split())
_L, _LD, _A = r"[^\W\d_½¼¾⅓⅔]", r"[^\W_½¼¾⅓⅔]", "['’]"  # a letter; a letter or digit; an apostrophe
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_AUX = rf"{_A}(?i:[smd]|ll|re|ve)"
_JOINED = rf"{_LD}+(?:[-_]{_LD}+)*"

# Tried together at every place. Where a rule has a group 1, that is the token and the rest is context.
_RULES = (
    # contractions, and apostrophes that belong to a word
    rf"({_L}{_LD}*)(?i:n['’`]t)",
    r"(?i:n['’`]t)",
    rf"({_L}{_LD}*){_AUX}(?!{_L})",
    rf"{_AUX}(?!{_L})",
    rf"(?i:(can)not)(?!{_LD})",
    rf"(?i:(go[nt]|wan)na|(gim|lem)me)(?!{_LD})",
    rf"(?i:(got)ta)(?!{_LD})",
    rf"(?i:({_A}t)(?:is|was))(?!{_LD})",
    rf"{_A}(?i:em|till?|cause|n)(?!{_LD})",
    rf"{_A}[nN]{_A}",
    rf"{_A}[2-9]0s(?!{_LD})|{_A}\d\d(?!{_LD})",
    rf"[djlyDJLY]{_A}(?!{_A})|(?i:ol|dunkin|somethin){_A}",
    rf"(?:[dlno]|(?!Y)[A-Z]){_A}{_L}{{2,}}(?:[-_]{_LD}+)*",
    rf"{_L}+[aeiouyAEIOUY]{_A}[aeiouA-Z]{_L}*|(?:{_LD}+-)+o{_A}{_L}{{2,}}",
    rf"(?i:c{_A}mon|[eo]{_A}er|li{_A}l|ev{_A}ry|s{_A}mores|nat{_A}l|nor{_A}easter)",
    # words, abbreviations, initials
    _WORD,
    _JOINED,
    rf"{_JOINED}(?:/{_JOINED}){{1,2}}",
    rf"(?:{_WORD}|{_L}(?:\.{_L})+\.)(?:-{_LD}+)+",
    rf"{_L}(?:\.{_L})+\.",
    rf"({_L}\.)(?!\.)(?!\s+(?:{_any(_OPENERS)})\s)",
    rf"(?:(?i:{_any(_ABBREVIATIONS)})|{_any(_CAPITALISED)})\.(?:-{_LD}+)*",
    rf"((?:{_WORD}|{_JOINED})\.)[,;:]",
    rf"((?i:{_any(_BEFORE_NUMBERS)})\.)\s?\d",
    r"[A-Z]+(?:&(?:amp;)?[A-Z]+)+|[cC]\+\+|[cCfF]#",
    # numbers
    rf"[-+]?(?:\d*[.:,])?\d+(?:[.:,]\d+)*(?:-{_LD}*{_L}{_LD}*)*",
    r"[-+]?\d+(?:/\d+){1,2}",
    r"\d+\s\d+/\d+",
    r"\(\d{3}\)[ -]?\d{3}[ -]\d{4}",
    r"[A-Z]+\$",
    # addresses, tags, emoticons
    r"https?://[^\s<>\"]+\.[^\s<>\"]*[^\s<>\".,;:!?)]|www\.[^\s<>\"]*[^\s<>\".,;:!?)]",
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*",
    rf"{_L}{_LD}*\.(?:com|net|org|edu)(?:/[\w/.-]*\w)?",
    rf"@{_L}\w*|#{_L}+|@+|#+",
    rf"</?{_L}[^<>]*>",
    rf"[:;=][-'’o]{{0,2}}[()DPp\]\[|@\\3](?!{_LD})|\^_\^",
    # punctuation
    r"[?!]{2,}|\*+|_+|<<|>>|-+|''|``|\.{3,}|\. \. \.|&[A-Za-z]+;",
    r"-[LR][RCS]B-",
    r"\S",
)
_COMPILED = tuple(re.compile(rule) for rule in _RULES)
_CONTRACTED = re.compile(rf"{_AUX}|(?i:n’t)")
# Most tokens are words between spaces, or the last before the final period, and need no rules.
_PLAIN = re.compile(r"[A-Za-z]+(?=[\s,]|$)|[A-Za-z]{2,}(?=\.\s*$)")
_NOT_PLAIN = re.compile(rf"(?i:cannot|go[nt]na|gotta|wanna|gimme|lemme|{_any(_ABBREVIATIONS)}|{_any(_CAPITALISED)})")

_SPELT = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "£": "#", "€": "$", "¢": "cents", "…": "...", "–": "--", "—": "--"}
_SPELT |= {"―": "--", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": ""}
_SPELT |= dict.fromkeys('"“”«»', "''") | dict.fromkeys("‘’‹›", "'")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def _next(text: str, at: int) -> tuple[str, int]:
    """The token that begins at `at`, and where it ends."""
    plain = _PLAIN.match(text, at)
    if plain and not _NOT_PLAIN.fullmatch(plain[0]):
        return plain[0], plain.end()
    best = max((m for m in (rule.match(text, at) for rule in _COMPILED) if m), key=lambda m: m.end())  # the first of the longest
    group = best.lastindex or 0
    return best[group], best.end(group)


def _spelt(token: str) -> str:
    """As the Treebank writes it: brackets, dashes, quotation marks and entities have names of their own."""
    if token.isalpha():
        return token
    if token in _SPELT:
        return _SPELT[token]
    if len(token) > 1 and set(token) == {"-"}:
        return "--" if len(token) < 5 else token
    if len(token) > 2 and set(token) <= {".", " "}:
        return "..."
    if len(token) > 2 and token[0] == "<":  # a tag
        return token
    if token[0] in ":;=":  # an emoticon
        return token.replace("(", "-lrb-").replace(")", "-rrb-")
    if _CONTRACTED.fullmatch(token):
        return token.replace("’", "'")
    return "".join(_BRACKETS.get(c, c) for c in token.replace("&amp;", "&"))


def treebank(text: str) -> list[str]:
    """All tokens of one caption, punctuation too, in small letters."""
    text = "".join(c for c in text if ord(c) < 0x10000)  # the reference cannot read what lies beyond, and skips it
    out, at = [], 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return out
        token, at = _next(text, at)
        out += _spelt(token).lower().split()  # tags, telephone numbers and mixed fractions hold spaces


def tokenize(text: str) -> list[str]:
    """The tokens that the caption scores count."""
    return [token for token in treebank(text) if token not in DROPPED]
