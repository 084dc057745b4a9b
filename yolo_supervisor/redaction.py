"""Secrets, taken out of what is written down: an agent's screen and transcript hold whatever it has come across.

It errs on the side of silence: a harmless word too much is hidden rather than a key left standing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"

_NAME = (
    r"[0-9A-Za-z_.-]{0,40}?(?:api[_-]?key|token|secret|passw(?:or)?d|passphrase|credential|private[_-]?key"
    r"|access[_-]?key|\bauth\b|_auth|cookie|\bdsn\b|session[_-]?key)s?[0-9A-Za-z_.-]{0,40}"
)

_MIXED = r"(?=[0-9A-Za-z+/_-]{0,200}?[0-9])(?=[0-9A-Za-z+/_-]{0,200}?[a-z])(?=[0-9A-Za-z+/_-]{0,200}?[A-Z])"

_WHOLE = [
    # a private key, also one whose beginning or end is out of sight
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----.*?(?:-----END [A-Z0-9 ]{0,40}KEY[A-Z ]{0,20}-----|\Z)",
    rf"(?<![0-9A-Za-z+/_-]){_MIXED}[0-9A-Za-z+/]{{48,}}={{0,2}}(?![0-9A-Za-z+/_-])",
    r"\bsk-[0-9A-Za-z_-]{8,}",  # Anthropic, OpenAI
    r"\b(?:sk|rk|pk|whsec)_(?:live|test)?_?[0-9A-Za-z]{10,}",  # Stripe
    r"\bgh[opsur]_[0-9A-Za-z]{16,}|\bgithub_pat_[0-9A-Za-z_]{16,}|\bglpat-[0-9A-Za-z_-]{16,}",
    r"\bxox[abeoprs]-[0-9A-Za-z-]{8,}|\bnpm_[0-9A-Za-z]{20,}|\bpypi-[0-9A-Za-z_-]{16,}|\bhf_[0-9A-Za-z]{16,}",
    r"\b(?:AKIA|ASIA|AGPA|AIDA|AROA)[0-9A-Z]{12,}|\bAIza[0-9A-Za-z_-]{30,}|\bya29\.[0-9A-Za-z_-]{10,}",
    r"\beyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{4,}(?:\.[0-9A-Za-z_-]*)?",  # JSON web tokens
    r"\b[0-9a-fA-F]{40,}\b",  # what is that long and hexadecimal may be a key, or a digest: hidden either way
    rf"(?<![0-9A-Za-z+/_-]){_MIXED}[0-9A-Za-z+_-]{{32,}}={{0,2}}(?![0-9A-Za-z+/_-])",  # a long random word
]
_AFTER = [
    r"(?i)(\b(?:proxy-)?authorization\b\\?[\"']?\s{0,9}[:=]\s{0,9}\\?[\"']?(?:(?:bearer|basic|token)\s{1,9})?)[^\s\"'\\,]{3,}",
    r"(?i)(\b(?:bearer|basic)\s{1,9})[0-9A-Za-z._~+/=-]{6,}",
    r"(?i)(\b(?:set-)?cookie\b\\?[\"']?\s{0,9}:\s{0,9})[^\r\n\"']+",
    rf"(?i)(?<![0-9A-Za-z_.-])({_NAME}\\?[\"']?\s{{0,9}}[:=]\s{{0,9}})(?:\\?\"[^\"\\]*\\?\"?|'[^']*'?|[^\s\"',;&|}})]+)",
    r"(?i)(?<![0-9A-Za-z-])(--?[0-9a-z-]{0,30}(?:token|password|passwd|secret|api-?key)[0-9a-z-]{0,30}[ =])[^\s\"']+",
    r"(?<![0-9A-Za-z+.-])([a-zA-Z][a-zA-Z0-9+.-]{0,20}://[^\s/:@\"']{0,100}:)[^\s/@\"']{1,200}(?=@)",  # in an address
    r"(?<![0-9A-Za-z_])((?:\\n)?[A-Z][A-Z0-9_]{2,60}=)(?:\\?\"[^\"\\]*\\?\"?|'[^']*'?|[^\s\"'\\;]+)",  # and elsewhere
    r"(?m)(^\s{0,9}(?:export\s{1,9}|declare -x\s{1,9})?[A-Z][A-Z0-9_]{2,60}=)\S.*$",  # a line of an environment
]
_RULES = [(re.compile(rule, re.DOTALL), HIDDEN) for rule in _WHOLE] + [
    (re.compile(rule), rf"\g<1>{HIDDEN}") for rule in _AFTER
]


def redacted(text: str) -> str:
    """The text without what looks like a secret."""
    for rule, instead in _RULES:
        text = rule.sub(instead, text)
    return text


def redacted_all(value: Any) -> Any:
    """The same for every text in a JSON value; keys that name a secret hide what is under them."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_all(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_all(each) for each in value]
    return value
