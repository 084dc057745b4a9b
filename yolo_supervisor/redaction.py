"""Secrets, taken out of what is written down: an agent's screen and transcript hold whatever it has come across.

It errs on the side of silence: a harmless word too much is hidden rather than a key left standing. No rule looks twice
at what it has passed (``{…}+`` gives nothing back): what stands here was written by others, and may be made to take
long.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

HIDDEN = "[hidden]"

MANY, DEEP = 60, 20
"""How many values of a list, the last, and how many levels are told of a JSON value."""

_KEY = (
    r"api[ _-]?key|token|secret(?: (?:access )?key)?|passw(?:or)?d|passphrase|credential|cookie|dsn(?![a-z])"
    r"|(?:private|access|session|account|shared|sign(?:ing)?|encrypt(?:ion)?|master)[ _-]?key|client-key-data"
    r"|pwd(?![a-z])|(?<![^\W_])(?:auth|pw)(?![a-z])"
    r"|(?-i:(?<![^\W_])[Pp]ass|(?<=[A-Za-z])_?PASS|(?<=[a-z])Pass)(?![A-Za-z])"
)
_NAME = rf"(?:{_KEY})(?!iz|less|ary|ari)s?[0-9A-Za-z_.-]{{0,40}}+"
"""What names a secret, from the telling word on: whatever stands before it need not be looked at."""

_QUOTED = r"""[fbruFBRU]{0,2}+(?P<q>\\*+["'`])(?:(?!(?<!\\)(?P=q)).){0,4000}+(?P=q)?"""
"""Up to the same quote, escaped as often as the first one: JSON in JSON in a command has ``\\\"``."""

_VALUE = rf"""(?:{_QUOTED}|\[[^\]]{{0,2000}}+\]?|\{{[^{{}}]{{0,2000}}+\}}?|[^\s"']+)"""
_PLAIN = (
    r"(?!(?:str|string|String|bytes|bool|boolean|int|number|any|None|null|nil|undefined|true|false|True|False)"
    r"(?:[\s,;)\]}|?]|\Z))"
)
"""Not a type's name, as in a declaration, nor nothing."""

_BETWEEN = (
    r"""(?:\\*+["'`])?+[\])]?"""
    r"""(?: for (?:key )?(?:'[^'\n]{1,100}+'|"[^"\n]{1,100}+"|[^\s:'"]{1,80}+))?(?: \[[^\]\n]{0,40}+\])?\s{0,9}+"""
    r"(?::\s{0,9}+[A-Za-z_][0-9A-Za-z_.\[\]<>|]{0,40}+(?: \| \w{1,40}+){0,3}+\s{0,9}+=(?!=)|[:!=]?={1,3}>?|:(?!:))"
    r"\s{0,9}+"
)
"""``: password = "``, ``"password": "``, ``password: str = "``, ``:password => "``, ``Password for bob: ``."""

_MIXED = r"(?=[0-9A-Za-z+/_-]{0,200}?[0-9])(?=[0-9A-Za-z+/_-]{0,200}?[a-z])(?=[0-9A-Za-z+/_-]{0,200}?[A-Z])"
_START = r"(?<![0-9A-Za-z+/_-])"
_END = r"(?![0-9A-Za-z+/_-])"

_WHOLE = [
    # a private key, also one whose end is out of sight
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----.*?(?:-----END [A-Z0-9 ]{0,40}KEY[A-Z ]{0,20}-----|\Z)",
    rf"{_START}{_MIXED}(?:[0-9A-Za-z+/]{{48,}}+|[0-9A-Za-z+/]{{40}})={{0,2}}{_END}",
    rf"{_START}{_MIXED}[0-9A-Za-z+_-]{{32,}}+={{0,2}}{_END}",  # a long random word
    r"(?:\b[a-z]{2,12}_(?:v[0-9]_)?)?[0-9a-fA-F]{32,}+",  # may be a key, or a digest: hidden either way
    r"\bsk-[0-9A-Za-z_-]{8,}+",  # Anthropic, OpenAI
    r"\b(?:sk|rk|pk|whsec)_(?:live|test)?_?[0-9A-Za-z]{10,}+",  # Stripe
    r"\bgh[opsur]_[0-9A-Za-z]{16,}+|\bgithub_pat_[0-9A-Za-z_]{16,}+|\bgl(?:pat|rt|dt)-[0-9A-Za-z_-]{16,}+",
    r"\bxox[abeoprs]-[0-9A-Za-z-]{8,}+|\bnpm_[0-9A-Za-z]{20,}+|\bpypi-[0-9A-Za-z_-]{16,}+|\bhf_[0-9A-Za-z]{16,}+",
    r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[0-9A-Z]{12,}+|\bAIza[0-9A-Za-z_-]{30,}+|\bya29\.[0-9A-Za-z_-]{10,}+",
    r"\bAGE-SECRET-KEY-1[0-9A-Z]{8,}+|\bdckr_pat_[0-9A-Za-z_-]{16,}+|\bhv[sb]\.[0-9A-Za-z_-]{16,}+",
    r"\beyJ[0-9A-Za-z_-]{8,}+(?:\.[0-9A-Za-z_-]*+){0,4}",  # JSON web tokens
    r"\$(?:apr1|1|2[aby]|5|6|y|argon2[a-z]{0,2})\$[^\s:\"']{8,}+",  # hashes of passwords
]
_AFTER = [
    rf"(?i)(\bauthorization(?:\\*+[\"'])?+\s{{0,9}}+[:=]\s{{0,9}}+)(?:{_QUOTED}|(?:digest\b[^\r\n]*+|[^\r\n\"']++))",
    r"(?i)(\bbearer\s{1,9}+)[0-9A-Za-z._~+/=-]{6,}+",
    r"(\b[Bb]asic\s{1,9}+)(?=[0-9A-Za-z+/]{0,200}?[0-9A-Z=])[0-9A-Za-z+/]{6,}+={0,2}",
    rf"(?i)(\b(?:set-)?cookies?(?:\\*+[\"'])?+\s{{0,9}}+[:=]\s{{0,9}}+)(?:{_QUOTED}|\{{[^{{}}]{{0,2000}}+|[^\r\n\"']++)",
    rf"(?i)({_NAME}{_BETWEEN}){_PLAIN}(?!(?<=pass: )\d{{1,6}}\b){_VALUE}",
    # {"name": "DB_PASSWORD", "value": "…"}
    rf"(?i)({_NAME}(?:\\*+[\"'])?+[\s,]{{1,40}}+(?:\\*+[\"'])?+value(?:\\*+[\"'])?+\s{{0,9}}+[:=]\s{{0,9}}+){_VALUE}",
    rf"(?i)(<[0-9a-z_.:-]{{0,40}}?(?:{_KEY})[0-9a-z_.:-]{{0,40}}+(?:\s[^<>]{{0,200}}+)?>)[^<]++",
    r"(?i)(\b(?:login|account)\s{1,9}+\S{1,100}+\s{1,9}+password\s{1,9}+)\S++",  # .netrc
    r"(?im)(^[ \t]{0,20}+password[ \t]{1,9}+)\S++(?=[ \t]{0,20}$)",
    # of a command: --token …, -u name:…, and those of single programs
    rf"(?i)((?<![0-9a-z-])--?(?:[0-9a-z-]{{0,30}}?(?:{_KEY})(?!-stdin)s?[0-9a-z-]{{0,30}}+)(?:\s|=)\s{{0,3}}+){_VALUE}",
    r"((?<![^\s\"'])(?:-[uU]|--user|--proxy-user)[ =]{0,3}+[\"']?[^\s:\"'/]{1,100}+:)(?!\d{1,6}(?:\s|\Z))[^\s\"']++",
    rf"(\b(?:mysql|mariadb|sshpass|login|mongo|cqlsh|rabbitmq)[^\n|;&]{{0,120}}?\s-p\s{{0,3}}+){_VALUE}",
    rf"(\b(?:redis-cli\b[^\n|;&]{{0,120}}?\s-a|(?:sqlcmd|zip|unzip)\b[^\n|;&]{{0,120}}?\s-P)\s{{0,3}}+){_VALUE}",
    rf"(\b(?:ldap[a-z]{{2,9}}\b[^\n|;&]{{0,120}}?\s-w|openssl\b[^\n|;&]{{0,120}}?\s-[kK])\s{{0,3}}+){_VALUE}",
    rf"(--from-literal[ =][^\s=]{{1,100}}+=){_VALUE}",
    rf"(\bset(?:env|(?:\s-[a-zA-Z]{{1,8}}+|\s--[a-z]{{1,12}}+){{1,3}})\s{{1,9}}+[A-Z][A-Z0-9_]{{2,60}}+\s{{1,9}}+){_VALUE}",
    # in an address
    r"(://[^\s/:@\"']{0,100}+:)[^\s\"']{1,300}(?=@)",
    r"(://)(?![a-z._-]{1,12}@)[^\s/:@\"'?#]{1,300}+(?=@)",
    r"(?i)(\bsig=|[?&][0-9a-z_-]{0,40}?(?:signature|key|code)=)[^\s&\"']++",
    r"(?i)(\bhooks\.slack\.com/services/|\bdiscord(?:app)?\.com/api/webhooks/)[^\s\"']++",
    # an environment: NAME=…, and a line of it
    rf"(?<![0-9A-Za-z_])((?:\\[nrt])?[A-Z][A-Z0-9_]{{2,60}}+=){_VALUE}",
    r"(?m)(^[\s\d→│|>+-]{0,20}+(?:export\s{1,9}+|declare -x\s{1,9}+)?[A-Z][A-Z0-9_]{2,60}+=)\S.*$",
]


@functools.cache
def _rules() -> list[tuple[re.Pattern[str], str]]:
    """Made when something is first hidden: it takes as long as a tenth of a command's start."""
    return [(re.compile(rule, re.DOTALL), HIDDEN) for rule in _WHOLE] + [
        (re.compile(rule, re.DOTALL if "(?m)" not in rule else 0), rf"\g<1>{HIDDEN}") for rule in _AFTER
    ]


_NAMED = re.compile(rf"(?i){_NAME}\Z")
_KEYS_END = re.compile(r"(-----END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----)")
_KEYS_LINE = re.compile(r"[\s\d→│|>+-]{0,20}[0-9A-Za-z+/]{1,100}={0,2}[\s│|]{0,20}")
_LINE = re.compile(r"(\r?\n|\\+n)")


def redacted(text: str) -> str:
    """The text without what looks like a secret."""
    text = _without_ends_of_keys(text)
    for rule, instead in _rules():
        text = rule.sub(instead, text)
    return text


def shortened(text: str, limit: int) -> str:
    """The beginning of the text, without the word that the cut goes through: half a secret looks like none."""
    if len(text) <= limit:
        return text
    return re.sub(r"\S{1,200}\Z", "", text[:limit]) + "…"


def cut_fields(fields: Mapping[str, object], limit: int) -> dict[str, object]:
    """A JSON object with the limits of ``cut``."""
    return {key: cut(value, limit, DEEP - 1) for key, value in list(fields.items())[:MANY]}


def cut(value: object, limit: int, deep: int = DEEP) -> object:
    """A JSON value without texts longer than ``limit``, lists or objects longer than ``MANY``, or deeper nesting."""
    if isinstance(value, str):
        return shortened(value, limit)
    if isinstance(value, Mapping):
        return {key: cut(each, limit, deep - 1) for key, each in list(value.items())[:MANY]} if deep else "…"
    if isinstance(value, list | tuple):
        return [cut(each, limit, deep - 1) for each in value[-MANY:]] if deep else "…"
    return value


def redacted_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """A JSON object with the redaction of ``redacted_all``."""
    return {redacted(key): redacted_all(value, _NAMED.search(key) is not None) for key, value in fields.items()}


def redacted_all(value: object, named: bool = False) -> object:
    """A JSON value with every text redacted; a key that names a secret hides everything under it."""
    if isinstance(value, Mapping):
        return {
            redacted(str(key)): redacted_all(each, named or _NAMED.search(str(key)) is not None)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_all(each, named) for each in value]
    if named and value is not None and not isinstance(value, bool):
        return HIDDEN
    return redacted(value) if isinstance(value, str) else value


def _without_ends_of_keys(text: str) -> str:
    """The text without the lines before the end of a private key: its beginning may have scrolled out of sight."""
    parts = _KEYS_END.split(text)
    for number in range(0, len(parts) - 1, 2):
        pieces = _LINE.split(parts[number])  # every other one is a line feed
        begin = len(pieces) - 1
        while begin >= 2 and _KEYS_LINE.fullmatch(pieces[begin - 2]):
            begin -= 2
        if begin < len(pieces) - 1:
            parts[number] = "".join([*pieces[:begin], HIDDEN, *pieces[-2:]])
    return "".join(parts)
