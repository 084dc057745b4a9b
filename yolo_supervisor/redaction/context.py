"""Secrets that are known by what stands before them: a name, a header, an option, a scheme."""

from __future__ import annotations

import re
from collections.abc import Callable

from yolo_supervisor.redaction.rule import SecretRule, has_digit_or_is_random, is_random

_KEY = (
    r"api[ _-]?key|(?<!unexpected )token|secret(?: (?:access )?key)?|passw(?:or)?d|passphrase|passcode|credential"
    r"|cookie(?!cutter)|dsn(?![a-z])|(?<![a-z])creds(?![a-z])"
    r"|(?:private|access|session|account|shared|sign(?:ing)?|encrypt(?:ion)?|master)[ _-]?key|client-key-data"
    r"|(?:licen[sc]e|deploy|service|admin|client|storage|consumer|app|application|subscription|auth|webhook|preshared)"
    r"[_-]?key(?![a-z])"
    r"|pwd(?![a-z])(?![\"']?\s?[:=]\s?[\"']?[/~])|(?<![^\W_])(?:auth|pw|psk)(?![a-z])"
    r"|(?-i:(?<=[a-z])Auth(?![a-z]))"
    r"|(?-i:(?<![^\W_])[Pp]ass|(?<=[A-Za-z])_?PASS|(?<=[a-z])Pass)(?![A-Za-z])"
    r"|passwort|kennwort|contrase(?:ñ|n)a|mot de passe|(?<![a-z])mdp(?![a-z])|(?<![a-z])senha(?![a-z])|wachtwoord"
    r"|has[łl]o(?![a-z])"
    r"|l(?:ö|o)senord|пароль|密码|密碼|パスワード|비밀번호"
)
_NAME = rf"(?P<name>(?:{_KEY})(?!i[sz]|less|ary|ari)s?[0-9A-Za-z_.-]{{0,40}}+)"
"""The name of a secret, from the word that marks it as one; characters before that word do not matter."""

_SECRET_NAME = re.compile(rf"(?i){_NAME}\Z")
_WORD_BOUNDARY = re.compile(r"[_.-]+|(?<=[a-z])(?=[A-Z])")
_NUMBER = re.compile(r"\d[\d.,_]{0,15}[kKmM%]?(?![\w-])")

_FACTS = (
    "name names count counts limit limits type types uri url uris urls endpoint endpoints file files path paths dir "
    "field fields len length min max policy policies expiry expires expired expiration ttl lifetime ref refs version "
    "versions usage usages used budget budgets size required enabled disabled strength index position provider "
    "providers manager store prefix suffix label placeholder hint prompt help description error errors message "
    "status state age days hours minutes seconds at in ms format parser validator class header param params "
    "parameter parameters env var rotation algorithm scope scopes audience issuer kind mode method domain host port "
    "rate ratio cost price window arn user username email login stdin command helper callback input form page view "
    "reset test tests spec js ts py go rs md json yaml yml toml html css java rb txt sh"
)
_ABOUT = frozenset(_FACTS.split())
"""The last words of names that are about a secret, as in ``secret_name``, ``tokenCount``, ``PASSWORD_FILE``."""


def _is_about(name: str) -> bool:
    words = _WORD_BOUNDARY.split(name.strip("._-"))
    return len(words) > 1 and words[-1].lower() in _ABOUT


def names_a_secret(key: str, value: object) -> bool:
    """Whether a key of a JSON object names a secret, and not a number of tokens or a fact about a secret."""
    if (match := _SECRET_NAME.search(key)) is None or _is_about(match["name"]):
        return False
    return not (isinstance(value, int | float) and match["name"].lower().startswith("tokens"))


def _has_secret_name(match: re.Match[str]) -> bool:
    """Whether the name in a match is that of a secret, which follows the match."""
    name = match["name"].lower()
    if _is_about(match["name"]):
        return False
    return not _is_number_of_tokens(name, match)


def _is_number_of_tokens(name: str, match: re.Match[str]) -> bool:
    """Whether a number of tokens, or the number of a token, follows; a one-time password has six digits."""
    if not name.startswith("token") or (number := _NUMBER.match(match.string, match.end())) is None:
        return False
    return name.startswith("tokens") or len(number[0]) <= 5


def _is_secret_name(match: re.Match[str]) -> bool:
    """Whether the name in a match, of an option or an element, is that of a secret."""
    found = _SECRET_NAME.search(match["name"])
    if found is None or _is_about(match["name"]):
        return False
    return not _is_number_of_tokens(found["name"].lower(), match)


_QUOTED = r"""[fbruFBRU]{0,2}+(?P<q>\\*+["'`])(?:(?!(?<!\\)(?P=q)).){0,4000}+(?P=q)?"""
"""A quoted value, up to the same quote with as many backslashes: JSON in JSON in a command has ``\\\"``."""

_CALLED = r"(?:[A-Za-z_][0-9A-Za-z_.]{0,60}+\(\s{0,4}(?=[\"']))?"
"""The function in ``Token("secret")``."""

_VALUE = rf"""(?:{_CALLED}{_QUOTED}|\[[^\]]{{0,2000}}+\]?|\{{[^{{}}]{{0,2000}}+\}}?|[^\s"']+)"""

_STOP = r"""(?=[\s,;)\]}|?"'`\\<\[]|\Z)"""
_PLAIN_WORDS = (
    r"str|strings?|bytes|bool|boolean|int|integer|number|any|none|null|nil|nan|undefined|true|false|yes|no|on|off"
    r"|enabled"
    r"|disabled|required|optional|missing|empty|unset|invalid|expired|incorrect|values?|unknown|hidden|redacted"
    r"|masked|n/a"
    r"|tbd|todo|include|omit|same-origin|(?:var)?char|text|basic|bearer|digest|negotiate|oauth2?|not|must|should|is|was|if|for|in|and|or"
    r"|(?-i:(?:Access|Auth)?Token|Password|Secret(?:Str)?|ApiKey|Credentials?|Auth|String|Cookies?)"
)
_VARIABLE = (
    r"\$\{\{|\{\{|\$\{[A-Za-z_]\w{0,60}+\}|\$(?:[A-Z_][A-Z0-9_]{0,60}|[a-z_]{1,60})(?!\w)|\$env:|\$\(|\$[0-9](?!\w)"
    r"|%[A-Z_]{2,60}%"
    r"|#\{|\{[a-z_][\w.]{0,40}+\}|<[A-Za-z][A-Za-z0-9 _-]{0,40}+>|[*•]{3,}|[xX]{3,}(?!\w)|\.{3}|…"
    r"|\[(?:hidden|redacted|masked|filtered|removed)\](?=[\s\"'`,;)\]}\\]|\Z)|your[_-]\w|\{\}|\[\]"
    r"|\{\s{0,9}[\"']?type\b|\((?:none|empty|unset|not set|hidden|redacted)\)|&&"
    r"|&(?:'\w{1,20} )?(?:mut )?(?:str|String"
    r"|self|[A-Z]\w{0,40})"
)
_ARGUMENT = (
    r"(?:(?-i:[A-Z_]{1,60})|[/.][^\"'`\n]{0,80}|[\w.-]{0,40}?(?:token|key|secret|pass|pwd|auth|cookie|cred)"
    r"[A-Za-z_.:? -]{0,40}"
    r"|)"
)
"""A quoted argument of a call that gets a secret: a name or an address."""

_EXPRESSION = (
    r"(?:await|new|yield|lambda|async|function|typeof)\s{1,3}[A-Za-z_$(]"
    rf"|[A-Za-z_$][0-9A-Za-z_.$:>!?-]{{0,80}}+\((?:[^()\n\"'`]|[\"'`]{_ARGUMENT}[\"'`]"
    rf"|\([^()\n\"'`]{{0,60}}+\)){{0,120}}+\)"
    r"|(?:self|this|cls|req|request|res|response|os|process|config|cfg|settings|env|ctx|context|args|opts|options"
    r"|params|props|state"
    r"|data|user|import|secrets|vault|var|local|module|Deno|ENV|std|github|inputs|steps|vars|crypto|session|body"
    r"|headers?)"
    r"(?:\?|!)?(?:\.|\[|->)[A-Za-z_\"']"
    r"|[A-Za-z_]\w{0,40}+\[(?:\d{1,4}|[a-z]|[\"'][A-Za-z_-]{1,60}[\"'])\]"
    r"|(?:[a-z]{1,12}_){0,3}+(?:token|password|passwd|secret|auth|credentials?|api_?key|pwd|cookie)s?(?=[,;)\]}?])"
    r"|(?-i:[A-Z][A-Za-z]{1,40}(?:\.[A-Z][A-Za-z_]{1,40}){1,4}(?![\w.]))"
    r"|(?-i:(?:Option|Optional|Result|Promise|List|Vec|Box|Arc|Mutex|Map|Dict|Array|Record|Union|Annotated"
    r"|Literal)[<\[(])"
)
_EMPTY = r"""["']{2}(?![^\s,;)\]}])|["'](?=[,;)\]}])|\\?[,;)\]}]"""
_PLAIN = rf"""(?!(?:\\*+["'`])?+(?:(?:{_PLAIN_WORDS}){_STOP}|{_VARIABLE})|{_EXPRESSION}|{_EMPTY})"""
"""Refuses what is no secret: a type, a variable, a placeholder, a call or another expression, an empty value."""

_BETWEEN = (
    r"""(?:\\*+["'`])?+(?:\]|\)(?!\s{0,9}=>))?"""
    r"""(?: (?:for|f(?:ü|ue?)r|de|pour) (?:key )?(?:'[^'\n]{1,100}+'|"[^"\n]{1,100}+"|[^\s:'"]{1,80}+))?"""
    r"""(?: \[[^\]\n]{0,40}+\])?\s{0,9}+"""
    r"(?::\s{0,9}+&?[A-Za-z_][0-9A-Za-z_.\[\]<>|]{0,40}+(?: \| \w{1,40}+){0,3}+\s{0,9}+=(?!=)"
    r"|[!=]==?(?=\s{0,9}+\\*+[\"'`])|:?=(?!=)>?|:(?!:)|：|\\u003[ad]|%3[ADad])"
    r"\s{0,9}+"
)
"""The text between name and value.

For example in ``: password = "``, ``"password": "``, ``password: str = "``, ``:password => "``, ``Password for bob: ``.
A comparison needs a quoted value.
"""

_PAIR = r"(?:\\*+[\"'])?+[\s,]{1,40}+(?:\\*+[\"'])?+value(?:\\*+[\"'])?+\s{0,9}+[:=]\s{0,9}+"
"""The text between a name and its value as two members: ``"DB_PASSWORD", "value": "``."""

_NAME_MARKS = (
    "key",
    "token",
    "secret",
    "pass",
    "pw",
    "cred",
    "cookie",
    "dsn",
    "auth",
    "kennwort",
    "contrase",
    "mdp",
    "senha",
    "wachtwoord",
    "hasł",
    "haslo",
    "senord",
    "psk",
    "пароль",
    "密",
    "パスワード",
    "비밀번호",
)

_MIXED_VALUE = (
    r"(?!(?:base\d\d|sha\d+|md5|utf-?8|utf16|oauth2|x509|pbkdf2|argon2\w{0,2}|p12|pkcs\d+|[hre]s\d{3}|http2|v\d+)\b)"
    r"(?=[^\s\"'|]{0,60}?[A-Za-z])(?=[^\s\"'|]{0,60}?[0-9])[^\s\"'|`,;)]{5,200}+"
)
"""A value with letters and digits, for places where words may stand, too."""

_ENVIRONMENT_NAME = (
    r"(?![A-Z0-9_]{0,60}?(?:SORT|PRIMARY|FOREIGN|PARTITION|CACHE|PUBLIC|INDEX|GROUP|ORDER|OBJECT|RANGE|HASH|HOT"
    r"|SHORTCUT)_KEY=)"
    r"(?:[A-Z0-9]+_){0,8}+"
    r"(?:[A-Z0-9]*(?:APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE)|KEY|PAT|PIN|SALT|CREDS?|CREDENTIALS?|PW|PASS"
    r"|AUTH|DSN|SEED|MNEMONIC"
    r"|WEBHOOK|WEBHOOK_URL|CONNECTION_STRING|CONNSTR|JWT|SAS|COOKIE)"
)

_VENDOR = re.compile(
    r"(?i)(?<![a-z])(?:adafruit|adobe|airtable|algolia|alibaba|asana|atlassian|jira|confluence|auth0|beamer|bitbucket"
    r"|bittrex"
    r"|cloudflare|codecov|cohere|coinbase|confluent|contentful|coveralls|datadog|dd|discord|droneci|dropbox|etsy"
    r"|facebook"
    r"|fastly|finicity|finnhub|flickr|freshbooks|gitter|heroku|hubspot|intercom|jfrog|artifactory|kraken|kucoin"
    r"|launchdarkly"
    r"|linear|linkedin|lob|looker|mailchimp|mailgun|mapbox|mattermost|meraki|messagebird|mistral|netlify"
    r"|new[_-]?relic|npm"
    r"|nytimes|okta|pagerduty|plaid|postmark|rapidapi|sendbird|sentry|snyk|sonar|squarespace|sumo(?:logic)?|telegram"
    r"|travis"
    r"|trello|twilio|twitch|twitter|vercel|yandex|zendesk)(?![a-z])[ \t0-9a-z_.-]{0,30}[\"']?[ \t]{0,3}\Z"
)
_IDENTIFIER = re.compile(
    r"(?i)(?:[_.-]|(?-i:(?<=[a-z])(?=[A-Z])))(?:ids?|ur[il]|host|name|version|org|project|region|site|env|dir|path|file"
    r"|branch|sha|commit)[\"']?[ \t]{0,3}\Z"
)


def _is_key_of_vendor(match: re.Match[str]) -> bool:
    """Whether the random value in a match is assigned to something with the name of a service, such as Heroku."""
    before = match.string[max(0, match.start() - 60) : match.start()]
    return bool(_VENDOR.search(before)) and not _IDENTIFIER.search(before) and is_random(match)


def _after(
    name: str,
    before: str,
    secret: str,
    *hides: str,
    keeps: tuple[str, ...] = (),
    marks: tuple[str, ...] = (),
    flags: int = re.DOTALL | re.IGNORECASE,
    accepts: Callable[[re.Match[str]], bool] | None = None,
) -> SecretRule:
    """A secret that is known by what stands before it."""
    return SecretRule(name, before, hides, keeps, marks, flags, accepts, secret)


_CASE = re.DOTALL

CONTEXT_RULES = (
    # -- the environment
    SecretRule(
        "environment_line",
        rf"^[\s\d→│|>+-]{{0,20}}+(?:export\s{{1,9}}+"
        rf"|declare -x\s{{1,9}}+)?{_ENVIRONMENT_NAME}=(?P<secret>{_PLAIN}[^\s\"'\\].*)$",
        ("export DB_PASSWORD=a <any>", "   12→DB_KEY=a b <any>"),
        ("export FOO=bar", "SORT_KEY=name", "API_KEY=$KEY", "PATH=/usr/bin:/bin"),
        ("=",),
        re.MULTILINE,
    ),
    _after(
        "environment_assignment",
        rf"(?<![0-9A-Za-z_])(?:\\[nrt])?{_ENVIRONMENT_NAME}=",
        rf"{_PLAIN}{_VALUE}",
        "env STRIPE_KEY=<any> run",
        "GH_PAT='a <any>'",
        keeps=("FOO=bar make", "NODE_ENV=production", "LICENSE=MIT", "DEBUG=1 npm start"),
        marks=("=",),
        flags=_CASE,
    ),
    # -- headers
    _after(
        "authorization_header",
        r"\bauthorization(?:\\*+[\"'])?+\s{0,9}+[:=]\s{0,9}+",
        rf"(?!(?:\\*+[\"'])?+(?:(?:bearer|basic|token|digest|negotiate|none|null|undefined|optional|required|true"
        rf"|false"
        rf"|disabled|enabled|string)?\s{{0,3}}(?:[\"'\\,;)}}]|\r?\n|\Z)|(?:(?:bearer|basic"
        rf"|token) )?(?:{_VARIABLE})))"
        rf"(?:{_QUOTED}|digest\b[^\r\n]*+|[^\r\n\"']++)",
        "Authorization: SSWS <any>",
        'Authorization: Digest username="bob", response="<any>"',
        '"authorization": "<any>"',
        "Proxy-Authorization: token <any>",
        keeps=(
            "authorization: none",
            "Authorization: Bearer",
            "Authorization: Bearer $TOKEN",
            'headers = {"Authorization": "Bearer ${TOKEN}"}',
            "Authorization: Bearer <token>",
        ),
        marks=("authorization",),
    ),
    _after(
        "bearer_token",
        r"\bbearer\s{1,9}+",
        rf"(?!{_VARIABLE})(?=[a-z._~+/=-]{{0,200}}?(?:[0-9=]|(?-i:[a-z][A-Z])|[\s\"']|\Z))"
        r"(?!(?:tokens?|auth|authentication|authorization|of|schemes?|is|in|header)\b)[0-9A-Za-z._~+/=-]{6,}+",
        "bearer <b62:20>",
        "bearer <any>",
        keeps=("Bearer token is missing", "bearer of bad news", "Bearer"),
        marks=("bearer",),
    ),
    _after(
        "basic_credentials",
        r"\b[Bb]asic\s{1,9}+",
        r"(?=[0-9A-Za-z+/]{0,200}?(?:[0-9=]|[a-z][A-Z]))[0-9A-Za-z+/]{6,}+={0,2}",
        "Basic <b64:32>=",
        "basic <b62:32>",
        keeps=("Basic Usage", "basic auth is enabled", "Basic Authentication"),
        marks=("asic",),
        flags=_CASE,
    ),
    _after(
        "cookie_header",
        r"\b(?:set-)?cookies?(?:\\*+[\"'])?+\s{0,9}+[:=]\s{0,9}+",
        rf"(?!(?:\\*+[\"'])?+(?:{_VARIABLE}))(?:{_QUOTED}|\{{[^{{}}]{{0,2000}}+"
        rf"|(?=[^\s=;\"']{{1,100}}+=)[^\r\n\"']++)",
        "Set-Cookie: sid=<any>; Path=/",
        '"cookie": "sid=<any>; b=2"',
        "cookies={'sid': '<any>'}",
        keeps=("Set cookies: yes", "cookie consent banner"),
        marks=("cookie",),
    ),
    # -- names
    _after(
        "named_value",
        rf"{_NAME}(?:{_BETWEEN}|{_PAIR})",
        rf"{_PLAIN}(?!(?<=pass: )\d{{1,6}}\b){_VALUE}",
        "password: <any>",
        '"api_key": "<any>"',
        "password: str | None = '<any>'",
        "pwd=<any>",
        '"peerToken": "<any>"',
        '"rvAuth": "<any>"',
        '"ptyAuth":"<any>"',
        "CLAUDE_CODE_MESSAGING_TOKEN=<any>",
        "Passwort: <any>",
        "contraseña: <any>",
        "mot de passe : <any>",
        "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=<b64:86>==;EndpointSuffix=a",
        "https://x/#id_token=<any>",
        "token = Token('<any>')",
        '"password"\\u003a "<any>"',
        "password：<any>",
        "password%3D<any>",
        "X-Amz-Security-Token=<any>",
        "password == '<any>'",
        "api_key: <any>  # of bob",
        "Enter passphrase for key '/home/x/.ssh/id': <any>",
        '\\"apiKey\\": \\"<any>\\"',
        "//r.example.org/:_authToken=<any>",
        "secret: [<any>]",
        "db.password=<any>",
        "cookie: <any>",
        "token: <digits:6>",
        "aws_secret_access_key = <b64:40>",
        "SECRET_KEY = 'django-insecure-<b62:32>%<b62:9>'",
        '{"name": "DB_PASSWORD", "value": "<any>"}',
        '<add key="Password" value="<any>" />',
        keeps=(
            "max_tokens: 4096",
            "input_tokens=1500 output_tokens=20",
            '"cache_read_input_tokens": 12034,',
            "token_count: 17",
            "tokenizer=bpe",
            "password: <empty>",
            "secret_name: db",
            "token: $TOKEN",
            "token: ${{ secrets.X }}",
            "token = next_token()",
            "password: string",
            "token: Token",
            "const token = await getToken()",
            "if (password === confirm)",
            "export const API_KEY_NAME = 'x'",
            "passing: 12",
            "pass: 12 fail: 3",
            "session key: value pairs are fine",
            "PWD=/home/me",
            "password_file = /run/secrets/db",
            "secretRef: db",
            "token: process.env.TOKEN",
            "login(user, password=password)",
            "tokens.py: ok",
            "password: ''",
            "token_type: bearer",
            "token expires in 3600",
            "let token: &str = self.token;",
            "auth: required",
            "token = Name.Label",
            "password={}",
            "password: (none)",
            "password = input('Password: ')",
            "(token) => token",
            "credentials: 'include'",
            '"password": {"type": "string"}',
        ),
        marks=_NAME_MARKS,
        accepts=_has_secret_name,
    ),
    _after(
        "secret_in_a_sentence",
        r"\b(?:password|passphrase|passcode|passwort|secret|token|api[ _-]?key)\b[\"'`*]{0,2}"
        r"(?:\s{1,3}(?:is|was|are|ist|to)\s{1,3}|\s{0,3}(?:-{1,2}>|→|=>)\s{0,3}|\s{0,9}\|\s{0,9}"
        r"|\t{1,3}|,\s{0,3}(?=[\"']))[\"'`*]{0,2}",
        _MIXED_VALUE,
        "the password is <any1>",
        "password -> <any1>",
        "| password | <any1> |",
        '("password", "<any1>")',
        "the token was '<any1>'",
        keeps=(
            "the password is required",
            "The password field is required",
            "password -> str",
            "| password | string |",
            "the token is base64 encoded",
            "secret santa is not defined",
            '("password", "email")',
        ),
        marks=("pass", "secret", "token", "key"),
    ),
    _after(
        "pin",
        r"(?<![0-9A-Za-z])(?:PIN(?: code)?|TAN|OTP|CVV|CVC)\s{0,3}[:=]\s{0,3}",
        r"\d{3,8}(?!\w)",
        "PIN: <digits:6>",
        keeps=("GPIO PIN: 12", "SPIN: 12345"),
        marks=("PIN", "TAN", "OTP", "CV"),
        flags=_CASE,
    ),
    _after(
        "seed_phrase",
        r"\b(?:seed|recovery|mnemonic|backup)(?:[ _-]?(?:phrase|words?|mnemonic))?[\"']?\s{0,3}[:=]\s{0,3}[\"']?",
        r"(?:[a-z]{3,8}\s{1,3}){9,23}+[a-z]{3,8}",
        "seed phrase: abandon ability able about above absent absorb abstract absurd abuse access accident",
        keeps=("seed: 42", "recovery: the daemon starts again"),
        marks=("seed", "recovery", "mnemonic", "backup"),
    ),
    _after(
        "one_time_password_seed",
        r"\b(?:TOTP|HOTP|OTP|2FA|MFA)(?:[ _-](?:seed|secret|key|code))?[\s:=\"']{1,5}",
        r"[A-Z2-7]{16,64}(?!\w)",
        "TOTP seed <base32u:16>",
        "MFA secret: <base32u:32>",
        marks=("OTP", "2FA", "MFA"),
        flags=_CASE,
    ),
    _after(
        "xml_element",
        r"<(?P<name>[a-z][0-9a-z_.:-]{1,80}+)(?:\s[^<>]{0,200}+)?>",
        r"(?!\s{0,20}<)[^<]{1,4000}+(?=</)",
        "<password><any></password>",
        '<smtp-password type="a"><any></smtp-password>',
        keeps=("login <token> then", "<token></token>"),
        marks=("</",),
        accepts=_is_secret_name,
    ),
    SecretRule(
        "vendor_key",
        r"[:=]\s{0,3}[\"']?(?P<secret>[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
        r"|(?=[A-Za-z_=-]{0,60}?[0-9])(?!v?\d{1,4}\.)[0-9A-Za-z_=-]{14,200}+)(?![0-9A-Za-z_./:-])",
        ("heroku: <uuid>", "DD_APP=<hex:40>", "okta = '00<b64url:40>'", "twitter: <b62:25>", "zendesk: <b62:40>"),
        (
            "linear-gradient: 12",
            "sentry-cli: version-12",
            "npm: 10.2.4",
            "jira: https://example.com/browse/ABC-123456789",
            "DISCORD_CLIENT_ID=123456789012345678",
        ),
        (":", "="),
        accepts=_is_key_of_vendor,
    ),
    # -- files of passwords
    _after(
        "netrc_password",
        r"\b(?:login|account)\s{1,9}+\S{1,100}+\s{1,9}+password\s{1,9}+",
        r"\S++",
        "machine a login b password <any>",
        marks=("password",),
    ),
    _after(
        "netrc_password_line",
        r"^[ \t]{0,20}+password[ \t]{1,9}+",
        rf"{_PLAIN}\S++(?=[ \t]{{0,20}}$)",
        "  password <any>",
        keeps=("password required", "password varchar(255)"),
        marks=("password",),
        flags=re.IGNORECASE | re.MULTILINE,
    ),
    _after(
        "pgpass_line",
        r"^[\w.*-]{1,100}+:(?:\d?[56]4\d\d|\*):[^\s:]{1,60}+:[^\s:]{1,60}+:",
        r"\S++$",
        "db.example.com:5432:app:bob:<any>",
        "*:*:*:bob:<any>",
        keeps=("src/a.c:5432:12:error:x", "app.log:10432:INFO:root:x"),
        marks=(":",),
        flags=re.MULTILINE,
    ),
    # -- options of commands
    _after(
        "secret_option",
        r"(?<![0-9a-z-])--?(?P<name>[0-9a-z][0-9a-z_-]{1,60}+)(?:\s|=|\\*+[\"'],\s{0,3}+\\*+[\"'])\s{0,3}+",
        rf"{_PLAIN}(?![-|&;<>#]){_VALUE}",
        "foo --api-token '<any>'",
        "foo --password=<any>",
        "gpg --batch --passphrase <any> -d x",
        '["--password", "<any>"]',
        keeps=(
            "npm test -- --token-limit 500",
            "foo --password-stdin x",
            "foo --password-file x",
            "run --max-tokens 4096",
            "foo --token $TOKEN",
            "foo --token 41",
            "foo --auth none",
            "foo --secret-name db",
        ),
        marks=("-",),
        accepts=_is_secret_name,
    ),
    _after(
        "user_option",
        r"(?<![^\s\"'])(?:(?<=[\s\"'])-[uUa]|--user|--proxy-user)[\"']?[ =,]{0,3}+[\"']?[^\s:\"'/,]{1,100}+:",
        r"(?!\d{1,6}(?:\s|\Z))(?!\$)[^\s\"']++",
        "curl -u admin:<any> https://x",
        "curl --user 'admin:<any>'",
        "http -a b:<any> x",
        keeps=("-u root:staff", "docker run --user root:staff x", "docker run -u 1000:1000 web"),
        marks=("curl", "wget", "http", "proxy-user"),
        flags=_CASE,
    ),
    _after(
        "database_login_option",
        r"\b(?:mysql|mariadb|sshpass|login|mongo|cqlsh|rabbitmq)[^\n|;&]{0,120}?\s-p\s{0,3}+",
        rf"(?!\d{{1,5}}:)(?!\$){_VALUE}",
        "mysql -uroot -p<any> shop",
        "sshpass -p <any> ssh x",
        "docker login -u bob -p <any>",
        marks=("-p",),
        flags=_CASE,
    ),
    _after(
        "redis_sqlcmd_zip_option",
        r"\b(?:redis-cli\b[^\n|;&]{0,120}?\s-a|(?:sqlcmd|zip|unzip)\b[^\n|;&]{0,120}?\s-P)\s{0,3}+",
        rf"(?!\$){_VALUE}",
        "redis-cli -a <any>",
        "sqlcmd -S x -P <any>",
        "zip -P <any> a.zip",
        marks=("redis-cli", "sqlcmd", "zip"),
        flags=_CASE,
    ),
    _after(
        "ldap_openssl_option",
        r"\b(?:ldap[a-z]{2,9}\b[^\n|;&]{0,120}?\s-w|openssl\b[^\n|;&]{0,120}?\s-[kK])\s{0,3}+",
        rf"(?!\$){_VALUE}",
        "ldapsearch -x -w <any>",
        "openssl enc -k <any>",
        marks=("ldap", "openssl"),
        flags=_CASE,
    ),
    _after(
        "from_literal_option",
        r"--from-literal[ =][^\s=]{1,100}+=",
        rf"(?!\$){_VALUE}",
        "kubectl create secret generic x --from-literal=foo=<any>",
        marks=("--from-literal",),
        flags=_CASE,
    ),
    _after(
        "sudo_input",
        r"\b(?:echo|printf)\s{1,3}(?:-[en]{1,2}\s{1,3})?",
        r"(?!\$|[\"']\$)[^|\n;&]{1,200}?(?=\s{0,3}\|\s{0,3}sudo\s[^|\n]{0,40}?-S)",
        "echo <any> | sudo -S ls",
        marks=("sudo",),
        flags=_CASE,
    ),
    _after(
        "statement",
        r"\b(?:IDENTIFIED(?: WITH \w{1,40})? BY|WITH PASSWORD|ENCRYPTED PASSWORD"
        r"|SET PASSWORD(?: FOR \S{1,80})? ?=|requirepass|masterauth"
        r"|vault login)\s{1,3}",
        rf"{_PLAIN}(?!-){_VALUE}",
        "CREATE USER a IDENTIFIED BY '<any>'",
        "ALTER ROLE a WITH PASSWORD '<any>'",
        "requirepass <any>",
        "vault login <any>",
        keeps=("a library identified by a name", "vault login -method=oidc", "requirepass $PASSWORD"),
        marks=("IDENTIFIED", "PASSWORD", "requirepass", "masterauth", "vault"),
        flags=_CASE,
    ),
    _after(
        "shell_set",
        rf"\b(?:ENV|set(?:env|(?:\s-[a-zA-Z]{{1,8}}+|\s--[a-z]{{1,12}}+){{1,3}}))\s{{1,9}}+{_ENVIRONMENT_NAME}\s{{1,9}}+",
        rf"{_PLAIN}{_VALUE}",
        "set -gx API_KEY <any>",
        "setenv API_KEY <any>",
        "ENV DB_PASSWORD <any>",
        keeps=("set -gx EDITOR vim",),
        marks=("set", "ENV"),
        flags=_CASE,
    ),
    # -- addresses
    SecretRule(
        "url_password",
        r"://[^\s/:@\"'<>]{0,100}+:(?!\$\{?[A-Za-z_]{1,60}\}?@|<"
        r"|//)(?P<secret>[^\s\"'@]{1,300}+(?:@[^\s\"'@]{0,300}+(?=@)){0,3}+)@",
        ("postgres://shop:<any>@db/shop", "postgres://shop:p@<any>@db/shop", "redis://:<any>@cache:6379"),
        ("http://localhost:8080/path?page=2#top", "postgres://app:$PASSWORD@db/x"),
        ("@",),
    ),
    SecretRule(
        "url_user",
        r"://(?![a-z._-]{1,12}@)(?![\$<{])(?P<secret>[^\s/:@\"'?#<>]{1,300}+)@",
        ("https://<b62:36>@git.example.com/x.git",),
        ("ssh://git@github.com/me/shop",),
        ("@",),
    ),
    _after(
        "url_signature",
        r"(?:\bsig|[?&][0-9a-z_-]{0,40}?signature)=",
        r"(?!\$|\{|<)[^\s&\"'<>]++",
        "https://x/c?sv=2020&sig=<any>",
        "https://x/c?X-Amz-Signature=<hex:64>&a=b",
        keeps=("?sig=$SIG",),
        marks=("sig",),
    ),
    SecretRule(
        "url_key",
        r"[?&][0-9a-z_-]{0,40}?(?:key|code)=(?P<secret>(?!\d{1,9}(?!\w))"
        r"(?=[a-z_.%~-]{0,60}?(?:[0-9]|(?-i:[A-Z])))[0-9a-z_.%~+/-]{10,}+)",
        ("https://x/c?key=<b62:20>&a=b", "http://localhost/cb?code=<b62:20>"),
        ("?code=404", "?sort_key=created_at", "?key=value"),
        ("key=", "code="),
        re.IGNORECASE,
        has_digit_or_is_random,
    ),
)
"""Secrets known by what stands before them, in the order in which they are hidden."""
