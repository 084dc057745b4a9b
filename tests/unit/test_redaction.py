"""Secrets are hidden, and ordinary text can still be read."""

from __future__ import annotations

import random
import re
import string
from pathlib import Path

import pytest

from yolo_supervisor.redaction import HIDDEN, redacted, redacted_all
from yolo_supervisor.redaction.rule import SecretRule
from yolo_supervisor.redaction.table import SECRET_RULES

HEX = "0123456789abcdef"
ALPHABETS = {
    "b62": string.ascii_letters + string.digits,
    "b64": string.ascii_letters + string.digits + "+/",
    "b64url": string.ascii_letters + string.digits + "-_",
    "azure": string.ascii_letters + string.digits + "-_~.",
    "b36": string.ascii_lowercase + string.digits,
    "upper": string.ascii_uppercase + string.digits,
    "base32": string.ascii_lowercase + "234567",
    "base32u": string.ascii_uppercase + "234567",
    "base58": "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz",
    "letters": string.ascii_letters,
    "hex": HEX,
    "digits": string.digits,
}
PLACE = re.compile(r"<(any1?|uuid|[a-z0-9]+:\d+)>")


def example(template: str, rng: random.Random) -> tuple[str, list[str]]:
    """The text of an example, and the secrets in it."""
    secrets = []

    def secret(match: re.Match[str]) -> str:
        kind, _, length = match[1].partition(":")
        if kind in {"any", "any1"}:
            text = "opensesame" + "7" * (kind == "any1")
        elif kind == "uuid":
            text = "-".join("".join(rng.choices(HEX, k=count)) for count in (8, 4, 4, 4, 12))
        else:
            text = "".join(rng.choices(ALPHABETS[kind], k=int(length) - 1)) + rng.choice(
                ALPHABETS[kind].rstrip("-_~.+/")
            )
        if len(text) >= 6:
            secrets.append(text)
        return text

    return PLACE.sub(secret, template), secrets


HIDES = [(rule, template) for rule in SECRET_RULES for template in rule.hides]
KEEPS = [(rule, text) for rule in SECRET_RULES for text in rule.keeps]


def case_id(value: object) -> str:
    return value.name if isinstance(value, SecretRule) else str(value)[:40]


def test_rules_have_distinct_names_and_examples() -> None:
    names = [rule.name for rule in SECRET_RULES]

    assert len(set(names)) == len(names)
    assert [rule.name for rule in SECRET_RULES if not rule.hides] == []


def test_documentation_lists_the_rules_in_their_order() -> None:
    listed = (Path(__file__).parents[2] / "docs" / "redaction.md").read_text().partition("## Rules")[2]

    assert re.findall(r"`([0-9a-z_]+)`", listed) == [rule.name for rule in SECRET_RULES]


@pytest.mark.parametrize(("rule", "template"), HIDES, ids=case_id)
def test_each_rule_alone_hides_its_examples(rule: SecretRule, template: str) -> None:
    for seed in range(20):
        text, secrets = example(template, random.Random(seed))
        result = rule.hidden_in(text)

        assert HIDDEN in result, text
        assert not [secret for secret in secrets if secret[-12:] in result], (text, result)
        assert rule.may_match(text, text.lower()), text


@pytest.mark.parametrize("template", [template for _, template in HIDES], ids=case_id)
def test_all_rules_together_hide_every_example_and_change_nothing_more(template: str) -> None:
    text, secrets = example(template, random.Random(1))
    result = redacted(text)

    assert not [secret for secret in secrets if secret[-12:] in result], (text, result)
    assert redacted(result) == result


@pytest.mark.parametrize("text", [text for _, text in KEEPS], ids=case_id)
def test_a_harmless_example_is_kept_by_all_rules(text: str) -> None:
    assert redacted(text) == text


HARMLESS = [
    "12 passed, 3 failed: tests/test_tokens.py::test_author PASSED; see src/auth/login.py:12",
    "PASS: test_shop.sh", "--- PASS: TestCart (0.00s)", "ok: bypass the cache, compass = north", "# pass: 12",
    "def login(user: str, password: str, token: str | None) -> bool:", "if token is None: return", "password = None",
    "git checkout c45b2bd && git push -u origin main && mkdir -p build/out && find . -print",
    "git clone https://github.com/me/shop.git ssh://git@github.com/me/shop http://localhost:8080/path?page=2#top",
    "the author: Bob, the tokenizer: fast, passwordless: yes", "Basic authentication is not enough",
    "docker run -u 1000:1000 -p 8080:80 web && docker login ghcr.io", "npx jest --passWithNoTests src",
    "const keys = Object.keys(config); std::token::kind == 3", "● Read(/home/me/Projects/shop/src/cart_test.go)",
    "-----BEGIN CERTIFICATE-----", "error TS2322: Type 'string' is not assignable to type 'number'.",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_text_and_code_are_not_redacted(text: str) -> None:
    assert redacted(text) == text


def test_a_key_that_names_a_secret_hides_everything_under_it() -> None:
    payload = {"error": {"apiKey": "s", "x-auth": ["s", {"a": "s", "n": 7}], "passwords": {"bob": "s"}, "is": "ok"}}

    assert redacted_all(payload) == {
        "error": {
            "apiKey": "[hidden]", "x-auth": ["[hidden]", {"a": "[hidden]", "n": "[hidden]"}],
            "passwords": {"bob": "[hidden]"}, "is": "ok",
        }
    }  # fmt: skip


def test_agent_ids_and_paths_are_not_redacted() -> None:
    plain = "dev-1@session-85d6cfb4 ran tests/test_shop.py in /home/me/shop: 3 failed, see c45b2bd6-48e7-4703-9ff5"

    assert redacted(plain) == plain
