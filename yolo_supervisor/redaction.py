"""Hide secrets in crash reports: an agent's screen and transcript may contain any.

Too much is hidden rather than too little. Repetitions are possessive (``{…}+``) or bounded: other programs write the
text, and no text may make a match slow.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

HIDDEN = "[hidden]"

MAX_ITEMS, MAX_DEPTH = 60, 20
"""The number of items of a list (the last ones) or an object, and of levels of a JSON value, that are kept."""

_KEY = (
    r"api[ _-]?key|token|secret(?: (?:access )?key)?|passw(?:or)?d|passphrase|credential|cookie|dsn(?![a-z])"
    r"|(?:private|access|session|account|shared|sign(?:ing)?|encrypt(?:ion)?|master)[ _-]?key|client-key-data"
    r"|pwd(?![a-z])|(?<![^\W_])(?:auth|pw)(?![a-z])"
    r"|(?-i:(?<![^\W_])[Pp]ass|(?<=[A-Za-z])_?PASS|(?<=[a-z])Pass)(?![A-Za-z])"
)
_NAME = rf"(?:{_KEY})(?!iz|less|ary|ari)s?[0-9A-Za-z_.-]{{0,40}}+"
"""The name of a secret, from the word that marks it as one; characters before that word do not matter."""

_QUOTED = r"""[fbruFBRU]{0,2}+(?P<q>\\*+["'`])(?:(?!(?<!\\)(?P=q)).){0,4000}+(?P=q)?"""
"""A quoted value, up to the same quote with as many backslashes: JSON in JSON in a command has ``\\\"``."""

_VALUE = rf"""(?:{_QUOTED}|\[[^\]]{{0,2000}}+\]?|\{{[^{{}}]{{0,2000}}+\}}?|[^\s"']+)"""
_PLAIN = (
    r"(?!(?:str|string|String|bytes|bool|boolean|int|number|any|None|null|nil|undefined|true|false|True|False)"
    r"(?:[\s,;)\]}|?]|\Z))"
)
"""Refuses the name of a type, as in a declaration, and empty values."""

_BETWEEN = (
    r"""(?:\\*+["'`])?+[\])]?"""
    r"""(?: for (?:key )?(?:'[^'\n]{1,100}+'|"[^"\n]{1,100}+"|[^\s:'"]{1,80}+))?(?: \[[^\]\n]{0,40}+\])?\s{0,9}+"""
    r"(?::\s{0,9}+[A-Za-z_][0-9A-Za-z_.\[\]<>|]{0,40}+(?: \| \w{1,40}+){0,3}+\s{0,9}+=(?!=)|[:!=]?={1,3}>?|:(?!:))"
    r"\s{0,9}+"
)
"""The text between name and value.

For example in ``: password = "``, ``"password": "``, ``password: str = "``, ``:password => "``, ``Password for bob: ``.
"""

_MIXED = r"(?=[0-9A-Za-z+/_-]{0,200}?[0-9])(?=[0-9A-Za-z+/_-]{0,200}?[a-z])(?=[0-9A-Za-z+/_-]{0,200}?[A-Z])"
_START = r"(?<![0-9A-Za-z+/_-])"
_END = r"(?![0-9A-Za-z+/_-])"


class SecretPattern(NamedTuple):
    """The look of one kind of secret; a match is replaced by ``replacement``."""

    name: str
    regex: str
    replacement: str = HIDDEN
    flags: int = re.DOTALL

    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.regex, self.flags)


def _prefixed(name: str, regex: str, flags: int = re.DOTALL) -> SecretPattern:
    """A secret that is known by what precedes it: group 1, which stays."""
    return SecretPattern(name, regex, rf"\g<1>{HIDDEN}", flags)


SECRET_PATTERNS = (
    # -- known by their characters
    # also one whose end was cut off
    SecretPattern(
        "private_key",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----.*?(?:-----END [A-Z0-9 ]{0,40}KEY[A-Z ]{0,20}-----|\Z)",
    ),
    # 40 characters (AWS), or 48 and more
    SecretPattern("base64_key", rf"{_START}{_MIXED}(?:[0-9A-Za-z+/]{{48,}}+|[0-9A-Za-z+/]{{40}})={{0,2}}{_END}"),
    # 32 characters and more, of mixed case and with digits
    SecretPattern("random_word", rf"{_START}{_MIXED}[0-9A-Za-z+_-]{{32,}}+={{0,2}}{_END}"),
    # a key, or a digest: both look the same
    SecretPattern("hex_key", r"(?:\b[a-z]{2,12}_(?:v[0-9]_)?)?[0-9a-fA-F]{32,}+"),
    # Anthropic, OpenAI
    SecretPattern("sk_key", r"\bsk-[0-9A-Za-z_-]{8,}+"),
    SecretPattern("stripe_key", r"\b(?:sk|rk|pk|whsec)_(?:live|test)?_?[0-9A-Za-z]{10,}+"),
    # GitHub, GitLab
    SecretPattern(
        "git_forge_token",
        r"\bgh[opsur]_[0-9A-Za-z]{16,}+|\bgithub_pat_[0-9A-Za-z_]{16,}+|\bgl(?:pat|rt|dt)-[0-9A-Za-z_-]{16,}+",
    ),
    # Slack, npm, PyPI, Hugging Face
    SecretPattern(
        "service_token",
        r"\bxox[abeoprs]-[0-9A-Za-z-]{8,}+|\bnpm_[0-9A-Za-z]{20,}+|\bpypi-[0-9A-Za-z_-]{16,}+|\bhf_[0-9A-Za-z]{16,}+",
    ),
    # AWS, Google
    SecretPattern(
        "cloud_key",
        r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[0-9A-Z]{12,}+|\bAIza[0-9A-Za-z_-]{30,}+|\bya29\.[0-9A-Za-z_-]{10,}+",
    ),
    # age, Docker Hub, Vault
    SecretPattern(
        "age_docker_vault_key",
        r"\bAGE-SECRET-KEY-1[0-9A-Z]{8,}+|\bdckr_pat_[0-9A-Za-z_-]{16,}+|\bhv[sb]\.[0-9A-Za-z_-]{16,}+",
    ),
    SecretPattern("json_web_token", r"\beyJ[0-9A-Za-z_-]{8,}+(?:\.[0-9A-Za-z_-]*+){0,4}"),
    # hashes of crypt and of Argon2
    SecretPattern("password_hash", r"\$(?:apr1|1|2[aby]|5|6|y|argon2[a-z]{0,2})\$[^\s:\"']{8,}+"),
    # -- known by a name, a header or an option before them
    _prefixed(
        "authorization_header",
        rf"(?i)(\bauthorization(?:\\*+[\"'])?+\s{{0,9}}+[:=]\s{{0,9}}+)(?:{_QUOTED}|(?:digest\b[^\r\n]*+|[^\r\n\"']++))",
    ),
    _prefixed("bearer_token", r"(?i)(\bbearer\s{1,9}+)[0-9A-Za-z._~+/=-]{6,}+"),
    _prefixed("basic_credentials", r"(\b[Bb]asic\s{1,9}+)(?=[0-9A-Za-z+/]{0,200}?[0-9A-Z=])[0-9A-Za-z+/]{6,}+={0,2}"),
    _prefixed(
        "cookie_header",
        rf"(?i)(\b(?:set-)?cookies?(?:\\*+[\"'])?+\s{{0,9}}+[:=]\s{{0,9}}+)(?:{_QUOTED}|\{{[^{{}}]{{0,2000}}+|[^\r\n\"']++)",
    ),
    _prefixed("named_value", rf"(?i)({_NAME}{_BETWEEN}){_PLAIN}(?!(?<=pass: )\d{{1,6}}\b){_VALUE}"),
    # a name and its value as two members: {"name": "DB_PASSWORD", "value": "…"}
    _prefixed(
        "name_value_pair",
        rf"(?i)({_NAME}(?:\\*+[\"'])?+[\s,]{{1,40}}+(?:\\*+[\"'])?+value(?:\\*+[\"'])?+\s{{0,9}}+[:=]\s{{0,9}}+){_VALUE}",
    ),
    _prefixed(
        "xml_element", rf"(?i)(<[0-9a-z_.:-]{{0,40}}?(?:{_KEY})[0-9a-z_.:-]{{0,40}}+(?:\s[^<>]{{0,200}}+)?>)[^<]++"
    ),
    # login NAME password SECRET
    _prefixed("netrc_password", r"(?i)(\b(?:login|account)\s{1,9}+\S{1,100}+\s{1,9}+password\s{1,9}+)\S++"),
    # a line with the password alone in .netrc
    _prefixed("netrc_password_line", r"(?im)(^[ \t]{0,20}+password[ \t]{1,9}+)\S++(?=[ \t]{0,20}$)"),
    # --token …
    _prefixed(
        "secret_option",
        rf"(?i)((?<![0-9a-z-])--?(?:[0-9a-z-]{{0,30}}?(?:{_KEY})(?!-stdin)s?[0-9a-z-]{{0,30}}+)(?:\s|=)\s{{0,3}}+){_VALUE}",
    ),
    # -u NAME:…
    _prefixed(
        "user_option",
        r"((?<![^\s\"'])(?:-[uU]|--user|--proxy-user)[ =]{0,3}+[\"']?[^\s:\"'/]{1,100}+:)"
        r"(?!\d{1,6}(?:\s|\Z))[^\s\"']++",
    ),
    # mysql -p …
    _prefixed(
        "database_login_option",
        rf"(\b(?:mysql|mariadb|sshpass|login|mongo|cqlsh|rabbitmq)[^\n|;&]{{0,120}}?\s-p\s{{0,3}}+){_VALUE}",
    ),
    # redis-cli -a …, sqlcmd -P …
    _prefixed(
        "redis_sqlcmd_zip_option",
        rf"(\b(?:redis-cli\b[^\n|;&]{{0,120}}?\s-a|(?:sqlcmd|zip|unzip)\b[^\n|;&]{{0,120}}?\s-P)\s{{0,3}}+){_VALUE}",
    ),
    # ldapsearch -w …, openssl -k …
    _prefixed(
        "ldap_openssl_option",
        rf"(\b(?:ldap[a-z]{{2,9}}\b[^\n|;&]{{0,120}}?\s-w|openssl\b[^\n|;&]{{0,120}}?\s-[kK])\s{{0,3}}+){_VALUE}",
    ),
    # kubectl create secret
    _prefixed("from_literal_option", rf"(--from-literal[ =][^\s=]{{1,100}}+=){_VALUE}"),
    # set -x NAME … (fish), setenv NAME … (csh)
    _prefixed(
        "shell_set",
        rf"(\bset(?:env|(?:\s-[a-zA-Z]{{1,8}}+|\s--[a-z]{{1,12}}+){{1,3}})\s{{1,9}}+[A-Z][A-Z0-9_]{{2,60}}+\s{{1,9}}+){_VALUE}",
    ),
    # scheme://NAME:…@host
    _prefixed("url_password", r"(://[^\s/:@\"']{0,100}+:)[^\s\"']{1,300}(?=@)"),
    # scheme://TOKEN@host
    _prefixed("url_user", r"(://)(?![a-z._-]{1,12}@)[^\s/:@\"'?#]{1,300}+(?=@)"),
    # ?sig=…&key=…
    _prefixed("url_query_key", r"(?i)(\bsig=|[?&][0-9a-z_-]{0,40}?(?:signature|key|code)=)[^\s&\"']++"),
    # Slack, Discord
    _prefixed("webhook_url", r"(?i)(\bhooks\.slack\.com/services/|\bdiscord(?:app)?\.com/api/webhooks/)[^\s\"']++"),
    # NAME=…
    _prefixed("environment_assignment", rf"(?<![0-9A-Za-z_])((?:\\[nrt])?[A-Z][A-Z0-9_]{{2,60}}+=){_VALUE}"),
    # a line of NAME=…, with spaces
    _prefixed(
        "environment_line",
        r"(^[\s\d→│|>+-]{0,20}+(?:export\s{1,9}+|declare -x\s{1,9}+)?[A-Z][A-Z0-9_]{2,60}+=)\S.*$",
        re.MULTILINE,
    ),
)
"""All patterns, in the order in which they are applied."""


@functools.cache
def _compiled() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Compiled at the first use: it takes a tenth of the start of a command."""
    return tuple((pattern.compiled(), pattern.replacement) for pattern in SECRET_PATTERNS)


_SECRET_NAME = re.compile(rf"(?i){_NAME}\Z")
_KEY_END = re.compile(r"(-----END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----)")
_KEY_LINE = re.compile(r"[\s\d→│|>+-]{0,20}[0-9A-Za-z+/]{1,100}={0,2}[\s│|]{0,20}")
_LINE = re.compile(r"(\r?\n|\\+n)")


def redacted(text: str) -> str:
    """The text with everything hidden that looks like a secret."""
    text = _without_key_tails(text)
    for pattern, replacement in _compiled():
        text = pattern.sub(replacement, text)
    return text


def shortened(text: str, limit: int) -> str:
    """The beginning of the text, up to a whole word, since half a secret is not recognised."""
    if len(text) <= limit:
        return text
    return re.sub(r"\S{1,200}\Z", "", text[:limit]) + "…"


def cut_fields(fields: Mapping[str, object], limit: int) -> dict[str, object]:
    """A JSON object with the limits of ``cut``."""
    return {key: cut(value, limit, MAX_DEPTH - 1) for key, value in list(fields.items())[:MAX_ITEMS]}


def cut(value: object, limit: int, depth: int = MAX_DEPTH) -> object:
    """A JSON value cut to ``limit`` characters a text, ``MAX_ITEMS`` and ``MAX_DEPTH``."""
    if isinstance(value, str):
        return shortened(value, limit)
    if isinstance(value, Mapping):
        return {key: cut(item, limit, depth - 1) for key, item in list(value.items())[:MAX_ITEMS]} if depth else "…"
    if isinstance(value, list | tuple):
        return [cut(item, limit, depth - 1) for item in value[-MAX_ITEMS:]] if depth else "…"
    return value


def redacted_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """A JSON object with the redaction of ``redacted_all``."""
    return {redacted(key): redacted_all(value, _SECRET_NAME.search(key) is not None) for key, value in fields.items()}


def redacted_all(value: object, under_secret: bool = False) -> object:
    """A JSON value with every text redacted.

    A key that names a secret hides everything under it.
    """
    if isinstance(value, Mapping):
        return {
            redacted(str(key)): redacted_all(item, under_secret or _SECRET_NAME.search(str(key)) is not None)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_all(item, under_secret) for item in value]
    if under_secret and value is not None and not isinstance(value, bool):
        return HIDDEN
    return redacted(value) if isinstance(value, str) else value


def _without_key_tails(text: str) -> str:
    """The text without the lines of a private key whose BEGIN line has scrolled out of the screen."""
    parts = _KEY_END.split(text)
    for number in range(0, len(parts) - 1, 2):
        pieces = _LINE.split(parts[number])  # every second piece is a line break
        begin = len(pieces) - 1
        while begin >= 2 and _KEY_LINE.fullmatch(pieces[begin - 2]):
            begin -= 2
        if begin < len(pieces) - 1:
            parts[number] = "".join([*pieces[:begin], HIDDEN, *pieces[-2:]])
    return "".join(parts)
