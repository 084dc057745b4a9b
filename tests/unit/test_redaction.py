"""Secrets are hidden, and ordinary text can still be read."""

from __future__ import annotations

import pytest

from yolo_supervisor.redaction import HIDDEN, SECRET_PATTERNS, SecretPattern, redacted, redacted_all

VALUES = {"any": "opensesame", "mixed": "A1b2C3d4E5f6G7h8J9k0L1m2N3p4Q5r6", "hex": "0f" * 16, "upper": "Q7Z" * 12}

SAMPLES = {
    "private_key": (
        "-----BEGIN PRIVATE KEY-----\n{mixed}\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\n{mixed}\n{any}",
    ),
    "base64_key": ("the key is {mixed}/{mixed}= ok", "{mixed}/aB3xYz9"),
    "random_word": ("seen: {mixed}", "x_{mixed}_y"),
    "hex_key": ("digest {hex}", "dop_v1_{hex}"),
    "sk_key": ("sk-ant-api03-{mixed}",),
    "stripe_key": ("sk_live_{mixed}", "whsec_{mixed}"),
    "git_forge_token": ("ghp_{mixed}", "github_pat_{mixed}", "glpat-{mixed}"),
    "service_token": ("xoxb-{mixed}", "npm_{mixed}", "pypi-{mixed}", "hf_{mixed}"),
    "cloud_key": ("AKIA{upper}", "AIza{mixed}", "ya29.{mixed}"),
    "age_docker_vault_key": ("AGE-SECRET-KEY-1{upper}", "dckr_pat_{mixed}", "hvs.{mixed}"),
    "json_web_token": ("eyJ{mixed}.{mixed}.{mixed}",),
    "password_hash": ("bob:$6${mixed}:19000", "$2b${mixed}", "$argon2id${mixed}"),
    "authorization_header": ("Authorization: SSWS {any}", 'Authorization: Digest username="bob", response="{any}"'),
    "bearer_token": ("bearer {any}",),
    "basic_credentials": ("Basic {mixed}=", "basic {mixed}"),
    "cookie_header": ("Set-Cookie: sid={any}; Path=/", '"cookie": "sid={any}; b=2"', "cookies={{'sid': '{any}'}}"),
    "named_value": ("password: {any}", '"api_key": "{any}"', "password: str | None = '{any}'", "pwd={any}"),
    "name_value_pair": ('{{"name": "DB_PASSWORD", "value": "{any}"}}',),
    "xml_element": ("<password>{any}</password>", '<smtp-password type="a">{any}</smtp-password>'),
    "netrc_password": ("machine a login b password {any}",),
    "netrc_password_line": ("  password {any}",),
    "secret_option": ("foo --api-token '{any}'", "foo --password={any}"),
    "user_option": ("curl -u admin:{any} https://x", "curl --user 'admin:{any}'"),
    "database_login_option": ("mysql -uroot -p{any} shop", "sshpass -p {any} ssh x", "docker login -u bob -p {any}"),
    "redis_sqlcmd_zip_option": ("redis-cli -a {any}", "sqlcmd -S x -P {any}", "zip -P {any} a.zip"),
    "ldap_openssl_option": ("ldapsearch -x -w {any}", "openssl enc -k {any}"),
    "from_literal_option": ("kubectl create secret generic x --from-literal=foo={any}",),
    "shell_set": ("set -gx API_KEY {any}", "setenv API_KEY {any}"),
    "url_password": ("postgres://shop:{any}@db/shop", "postgres://shop:p@{any}@db/shop"),
    "url_user": ("https://{mixed}@git.example.com/x.git",),
    "url_query_key": ("https://x/c?sv=2020&sig={any}", "https://x/c?api_key={any}&a=b"),
    "webhook_url": ("https://hooks.slack.com/services/T0/{any}", "https://discord.com/api/webhooks/1/{any}"),
    "environment_assignment": ("env MY_SETTING={any} run", "MY_SETTING='a {any}'"),
    "environment_line": ("export DB_URL=a {any}", "   12→DB_URL=a b {any}"),
}
"""Texts that each pattern alone must hide, without the help of another."""


def test_every_pattern_has_a_name_and_samples() -> None:
    assert [pattern.name for pattern in SECRET_PATTERNS] == list(SAMPLES)


@pytest.mark.parametrize("pattern", SECRET_PATTERNS, ids=lambda pattern: pattern.name)
def test_each_pattern_alone_hides_its_secrets(pattern: SecretPattern) -> None:
    for sample in SAMPLES[pattern.name]:
        result = pattern.compiled().sub(pattern.replacement, sample.format(**VALUES))

        assert HIDDEN in result
        assert not any(value in result for value in VALUES.values()), result


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
