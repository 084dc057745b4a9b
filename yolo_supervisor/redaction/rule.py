"""A rule of redaction, and the difference between words and random characters."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from yolo_supervisor.redaction.text import HIDDEN

_FREQUENT = (
    "in er re te on st at es le en ti se or nt et de ar co al an ta me li ed ri ge ro tr ra it io ma ng is nd ne ec "
    "to lo ve th fi as la ea di ac pa ct si pe ca il ch ex el ce ns na ad pr ss he ic ha rs am ou un om ll ol no ur "
    "rt da od ut ke op mp ts po em im ck nc fo id pl ab ag ot so mo ig ap oc bl ef pt rr ul mi ep ho va sc us sp ty "
    "cl sh os tt um ie ir ni su ba cr ow ai be up lt ue eg do"
)
_BIGRAMS = frozenset(_FREQUENT.split())
"""The pairs of letters that are frequent in names and words: three of four pairs there, one of five random pairs."""

_HEXADECIMAL = re.compile(r"(?=[a-f-]*[0-9])[0-9a-f-]{16,}", re.IGNORECASE)


@dataclass(frozen=True)
class SecretRule:
    """The look of one kind of secret, with examples.

    What is hidden is the match of ``secret`` right after a match of ``pattern``; without ``secret``, it is the group
    of that name, or the whole match. A match contains one of ``marks``, if there are any, so that most rules never
    search a text; if case is ignored, marks are in lower case. ``accepts`` refuses some matches of ``pattern``.

    In an example ``<b62:36>`` stands for 36 random characters of an alphabet that the tests define.
    """

    name: str
    pattern: str
    hides: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    flags: int = re.DOTALL
    accepts: Callable[[re.Match[str]], bool] | None = None
    secret: str = ""

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Compiled at the first text with a mark: compiling all rules takes longer than the start of a command."""
        grouped = self.secret or "(?P<secret>" in self.pattern
        return re.compile(self.pattern if grouped else f"(?P<secret>{self.pattern})", self.flags)

    @functools.cached_property
    def _secret(self) -> re.Pattern[str]:
        return re.compile(self.secret, self.flags)

    def may_match(self, text: str, lowered: str) -> bool:
        """Whether a text, also given in lower case, has a mark of this rule."""
        searched = lowered if self.flags & re.IGNORECASE else text
        return not self.marks or any(mark in searched for mark in self.marks)

    def hidden_in(self, text: str) -> str:
        """The text with every match hidden."""
        if not self.secret:
            return self._pattern.sub(self._replacement, text)
        parts: list[str] = []
        position = copied = 0
        while match := self._pattern.search(text, position):
            position = match.end()
            if self.accepts is not None and not self.accepts(match):
                continue
            if secret := self._secret.match(text, position):
                parts += text[copied:position], HIDDEN
                position = copied = secret.end()
        return "".join([*parts, text[copied:]])

    def _replacement(self, match: re.Match[str]) -> str:
        if self.accepts is not None and not self.accepts(match):
            return match[0]
        begin, end = match.span("secret")
        return f"{match.string[match.start() : begin]}{HIDDEN}{match.string[end : match.end()]}"


def reads_as_words(text: str) -> bool:
    """Whether a text is made of words, as are a path and ``aNameInCamelCase``, and not of random characters.

    Of texts of 32 random letters and digits 1 in 1,000 reads as words; of long names in source code 994 do.
    """
    if _HEXADECIMAL.fullmatch(text):
        return False
    letters = changes = frequent = 0
    before, kind_before = "", ""
    for character in text[:200]:
        kind = "a" if character.islower() else "A" if character.isupper() else "1" if character.isdigit() else "-"
        changes += kind != kind_before and "-" not in {kind, kind_before}
        if kind in "aA" and kind_before in "aA":
            letters += 1
            frequent += (before + character).lower() in _BIGRAMS
        before, kind_before = character, kind
    return letters > 0 and frequent >= 0.5 * letters and changes <= 0.55 * len(text[:200])


def is_random(match: re.Match[str]) -> bool:
    """Whether the secret of a match is neither made of words nor an alphabet."""
    secret = match["secret"]
    return "abcdefghijklmnopqrstuvwxyz" not in secret.lower() and not reads_as_words(secret)


def has_digit_or_is_random(match: re.Match[str]) -> bool:
    """Whether the secret of a match has a digit, or does not read as words."""
    return any(map(str.isdigit, match["secret"])) or is_random(match)
