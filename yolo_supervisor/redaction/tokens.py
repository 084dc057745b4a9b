"""Secrets that are known by their own characters: tokens with a published prefix, and keys."""

from __future__ import annotations

import re

from yolo_supervisor.redaction.rule import SecretRule, has_digit_or_is_random, is_random

_MIXED = r"(?=[0-9A-Za-z+/_-]{0,200}?[0-9])(?=[0-9A-Za-z+/_-]{0,200}?[a-z])(?=[0-9A-Za-z+/_-]{0,200}?[A-Z])"
_START = r"(?<![0-9A-Za-z+/_-])"
_END = r"(?![0-9A-Za-z+/_-])"
_NO_DIGEST = r"(?<!base64,)(?<!ssh-rsa )(?<!ssh-ed25519 )(?<!\bh1:)(?<!SHA256:)(?<!MD5: )(?!sha(?:1|256|384|512)-)"
"""Refuses data of an image, a public key and a digest."""
_NO_IMAGE = r"(?!iVBORw0KGgo|R0lGOD|/9j/|UklGR|PHN2Zy)"

_DIGEST_BEFORE = re.compile(
    r"(?i)(?:md5|e-?tag|sha\d*|digest|checksum|hash|trace|span|cache|rev|commit"
    r"|(?:trace|span|request|correlation|event|message|run|build|job)[_-]?id)[^0-9a-z\n]{0,8}\Z"
)
_DIGEST_LENGTHS = frozenset({40, 56, 64, 96, 128})
"""The lengths of SHA-1 (git), SHA-224, SHA-256, SHA-384 and SHA-512 in hexadecimal digits."""


def _no_digest(match: re.Match[str]) -> bool:
    """Whether hexadecimal digits are neither the digest of something nor part of a file's name."""
    digits, before = match["secret"], match.string[max(0, match.start() - 20) : match.start()]
    if digits[:2].lower() == "0x":
        return True
    if len(digits) in _DIGEST_LENGTHS:
        return False
    return not _DIGEST_BEFORE.search(before) and not re.match(r"\.[a-z]{2,4}\b|  \S", match.string[match.end() :][:8])


def _token(
    name: str, prefixes: str, body: str, *hides: str, keeps: tuple[str, ...] = (), anywhere: bool = False
) -> SecretRule:
    """A token with one of some prefixes (separated by spaces), and a pattern of what follows.

    The prefix comes first in the pattern: the search for a literal is fast. A prefix is not part of a longer word,
    unless the word is the ``n`` of an escaped line break.
    """
    marks = tuple(prefixes.split())
    literals = (re.escape(mark) for mark in marks)
    beginnings = (
        mark if anywhere else rf"{mark}(?:(?<![0-9A-Za-z]{mark})|(?<=\\[nrt]{mark})|(?<=%[0-9A-F]{{2}}{mark}))"
        for mark in literals
    )
    return SecretRule(name, f"(?:{'|'.join(beginnings)}){body}", hides, keeps, marks)


_WORD = r"[0-9A-Za-z_-]"

TOKEN_RULES = (
    # -- keys in several lines
    SecretRule(
        "private_key",  # also one whose end was cut off
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----.*?(?:-----END [A-Z0-9 ]{0,40}KEY[A-Z ]{0,20}-----|\Z)",
        (
            "-----BEGIN PRIVATE KEY-----\n<b64:64>\n-----END PRIVATE KEY-----",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n<b64:64>\n<any>",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n<b64:64>\n=abcd\n-----END PGP PRIVATE KEY BLOCK-----",
        ),
        ("-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----"),
        ("PRIVATE KEY",),
    ),
    SecretRule(
        "putty_key",
        r"Private-Lines: \d{1,4}\s{1,4}(?P<secret>(?:[0-9A-Za-z+/=]{1,100}+\s{1,4}){1,200}+"
        r"(?:Private-MAC: [0-9a-f]{1,100}+)?)",
        ("Private-Lines: 1\n<b64:52>\nPrivate-MAC: x",),
        marks=("Private-Lines:",),
    ),
    SecretRule(
        "ansible_vault",
        r"\$ANSIBLE_VAULT;[0-9A-Za-z.;_-]{1,60}+\s{1,20}(?P<secret>(?:[0-9a-f]{2,100}+\s{0,20}){1,2000}+)",
        ("$ANSIBLE_VAULT;1.1;AES256\n<hex:80>\n<hex:80>\n",),
        marks=("$ANSIBLE_VAULT;",),
    ),
    # -- forges, registries, build services
    _token(
        "github_token",
        "ghp_ gho_ ghu_ ghs_ ghr_",
        r"[0-9A-Za-z_.-]{16,}+",
        "ghp_<b62:36>",
        "gho_<b62:36>",
        "ghu_<b62:36>",
        "ghs_<b62:36>",
        "ghr_<b62:36>",
    ),
    _token("github_fine_grained_token", "github_pat_", r"\w{16,}+", "github_pat_<b62:22>_<b62:59>", anywhere=True),
    _token(
        "gitlab_token",
        "glpat- gldt- glrt- glrtr- glcbt- glptt- glft- glsoat- glagent- glimt- glffct- gloas- glwt-",
        rf"{_WORD}{{16,}}+(?:\.[0-9a-z]{{2,12}}+){{0,3}}+",
        "glpat-<b64url:20>",
        "glpat-<b64url:27>.01.1<b36:8>",
        "gldt-<b64url:20>",
        "glrt-t1_<b64url:27>.<b36:9>",
        "glcbt-64_<b64url:20>",
        "glptt-<hex:40>",
        "glft-<b64url:20>",
        "glsoat-<b64url:20>",
        "glagent-<b64url:50>",
        "glimt-<b64url:25>",
        "glffct-<b64url:20>",
        "gloas-<hex:64>",
        "glrtr-<b64url:20>",
        "glwt-<b64url:27>.<b36:9>",
        anywhere=True,
    ),
    _token("gitlab_runner_registration_token", "GR1348941", rf"{_WORD}{{16,}}+", "GR1348941<b64url:20>", anywhere=True),
    _token("bitbucket_token", "ATBB ATCTT3", r"[0-9A-Za-z_=-]{24,}+", "ATBB<b62:32>", "ATCTT3<b64url:180>"),
    _token("atlassian_token", "ATATT3 ATSTT3 ATOA", r"[0-9A-Za-z_=-]{40,}+", "ATATT3xFfGF0<b64url:180>=<hex:8>"),
    _token("npm_token", "npm_", r"[0-9A-Za-z]{20,}+", "npm_<b62:36>", keeps=("npm_config_registry",)),
    _token("pypi_token", "pypi-", rf"{_WORD}{{16,}}+", "pypi-AgEIcHlwaS5vcmc<b64url:100>", keeps=("pypi-publish",)),
    _token("rubygems_token", "rubygems_", r"[0-9a-fA-F]{32,}+", "rubygems_<hex:48>", anywhere=True),
    _token("crates_token", "cio", r"[0-9A-Za-z]{32}(?![0-9A-Za-z])", "cio<b62:32>"),
    _token("nuget_key", "oy2", r"[0-9a-z]{43}(?![0-9A-Za-z])", "oy2<b36:43>"),
    _token("clojars_token", "CLOJARS_", r"[0-9a-fA-F]{32,}+", "CLOJARS_<hex:60>", anywhere=True),
    _token(
        "docker_token",
        "dckr_pat_ dckr_oat_",
        rf"{_WORD}{{16,}}+",
        "dckr_pat_<b64url:27>",
        "dckr_oat_<b62:32>",
        anywhere=True,
    ),
    _token("artifactory_token", "AKCp cmVmdGtuO", r"[0-9A-Za-z]{40,}+", "AKCp<b62:69>", "cmVmdGtuO<b62:55>"),
    _token("sonar_token", "sqp_ squ_ sqa_", r"[0-9a-fA-F]{32,}+", "sqp_<hex:40>", "squ_<hex:40>", "sqa_<hex:40>"),
    _token("buildkite_token", "bkua_ bkat_ bkct_ bkpt_", r"[0-9A-Za-z]{24,}+", "bkua_<hex:40>"),
    _token("circleci_token", "CCIPAT_ CCIPRJ_", r"\w{16,}+", "CCIPAT_<b62:22>_<hex:40>", anywhere=True),
    _token("prefect_token", "pnu_ pnb_", r"[0-9A-Za-z]{24,}+", "pnu_<b62:36>"),
    _token("pulumi_token", "pul-", r"[0-9a-fA-F]{32,}+", "pul-<hex:40>"),
    SecretRule(
        "terraform_token",
        r"[0-9A-Za-z]{14}\.atlasv1\.[0-9A-Za-z_=-]{40,}+",
        ("<b62:14>.atlasv1.<b64url:67>",),
        marks=(".atlasv1.",),
    ),
    _token("scalingo_token", "tk-us-", rf"{_WORD}{{40,}}+", "tk-us-<b64url:48>"),
    _token("octopus_key", "API-", r"[0-9A-Z]{24,32}(?![0-9A-Za-z])", "API-<upper:26>"),
    _token("snyk_token", "snyk_uat. snyk_sat.", r"[0-9A-Za-z_.-]{24,}+", "snyk_uat.<hex:8>.<b64url:90>", anywhere=True),
    _token("sourcegraph_token", "sgp_ slk_ sgd_", r"[0-9A-Za-z_]{40,}+", "sgp_<hex:16>_<hex:40>", "sgp_<hex:40>"),
    _token(
        "harness_token",
        "pat. sat.",
        r"[0-9A-Za-z_-]{22}\.[0-9A-Za-z]{24}\.[0-9A-Za-z]{20}",
        "pat.<b64url:22>.<b62:24>.<b62:20>",
    ),
    # -- clouds and hosts
    _token(
        "aws_access_key_id",
        "AKIA ASIA AGPA AIDA AROA ABIA ACCA A3T",
        r"[0-9A-Z]{12,}+",
        "AKIA<upper:16>",
        "ASIA<upper:16>",
    ),
    _token("aws_bedrock_key", "ABSK bedrock-api-key-", r"[0-9A-Za-z+/]{60,}+={0,2}", "ABSK<b64:120>=="),
    _token(
        "aws_session_token",
        "FwoGZXIvYXdz IQoJb3JpZ2lu",
        r"[0-9A-Za-z+/=%]{40,}+",
        "FwoGZXIvYXdzE<b64:200>",
        "IQoJb3JpZ2luX2Vj<b64:200>",
    ),
    _token("google_api_key", "AIza", rf"{_WORD}{{30,}}+", "AIza<b64url:35>"),
    _token("google_access_token", "ya29.", r"[0-9A-Za-z_.-]{10,}+", "ya29.a0<b64url:100>"),
    _token("google_refresh_token", "1//0", rf"{_WORD}{{30,}}+", "1//0g<b64url:40>", "1//03<b64url:90>"),
    _token("google_client_secret", "GOCSPX-", rf"{_WORD}{{20,}}+", "GOCSPX-<b64url:28>", anywhere=True),
    SecretRule(
        "azure_client_secret",
        r"(?<![0-9A-Za-z_~.-])[0-9A-Za-z_~.]{3}[0-9]Q~[0-9A-Za-z_~.-]{31,34}(?![0-9A-Za-z_~-])",
        ("<b62:3>8Q~<azure:34>", "<b62:3>7Q~<azure:31>", "secret=<b62:3>8Q~<azure:34>"),
        marks=("Q~",),
    ),
    SecretRule(
        "azure_devops_token",
        r"(?<![0-9A-Za-z])(?:[a-z2-7]{52}|[0-9A-Za-z]{76}AZDO[0-9A-Za-z]{4})(?![0-9A-Za-z])",
        ("<base32:52>", "<b62:76>AZDO<b62:4>"),
        ("thequickbrownfoxjumpsoverthelazydogandrunsintothewood",),
        accepts=is_random,
    ),
    _token(
        "digitalocean_token",
        "dop_v1_ doo_v1_ dor_v1_",
        r"[0-9a-fA-F]{32,}+",
        "dop_v1_<hex:64>",
        "doo_v1_<hex:64>",
        "dor_v1_<hex:64>",
        anywhere=True,
    ),
    _token("heroku_key", "HRKU-", rf"{_WORD}{{30,}}+", "HRKU-<uuid>", "HRKU-AA<b64url:58>", anywhere=True),
    SecretRule(
        "fly_token",
        r"(?:FlyV1 )?(?<![0-9A-Za-z])(?:fm1[ar]_|fm2_|fo1_)[0-9A-Za-z+/=_,-]{20,}+",
        (
            "FlyV1 fm2_<b64:120>",
            "FlyV1 fm2_<b64:100>,fm2_<b64:100>",
            "fm1r_<b64:120>",
            "fm1a_<b64:120>",
            "fm2_<b64:120>",
            "fo1_<b64url:43>",
        ),
        marks=("fm1", "fm2_", "fo1_"),
    ),
    _token("cloudflare_origin_key", "v1.0-", r"[0-9a-f]{24}-[0-9a-f]{60,}+", "v1.0-<hex:24>-<hex:146>"),
    _token("netlify_token", "nfp_ nfc_ nfo_ nfu_ nfb_", r"[0-9A-Za-z]{24,}+", "nfp_<b62:36>"),
    _token("vercel_token", "vcp_ vci_ vca_ vcr_ vck_", r"[0-9A-Za-z]{24,}+", "vcp_<b62:56>", "vck_<b62:56>"),
    _token("supabase_token", "sbp_ sb_secret_", rf"{_WORD}{{24,}}+", "sbp_<hex:40>", "sb_secret_<b64url:31>"),
    _token(
        "planetscale_token",
        "pscale_tkn_ pscale_oauth_ pscale_pw_",
        r"[0-9A-Za-z_=.-]{20,}+",
        "pscale_tkn_<b64url:43>",
        "pscale_pw_<b64url:43>",
        anywhere=True,
    ),
    _token("tailscale_key", "tskey-", rf"{_WORD}{{16,}}+", "tskey-auth-<b62:12>CNTRL-<b62:32>", anywhere=True),
    _token("alibaba_access_key_id", "LTAI", r"[0-9A-Za-z]{12,}+", "LTAI<b62:20>"),
    _token("tencent_secret_id", "AKID", r"[0-9A-Za-z]{28,}+", "AKID<b62:32>"),
    _token("yandex_key", "AQVN YCAJ YCM", rf"{_WORD}{{30,}}+", "AQVN<b64url:36>"),
    _token("openshift_token", "sha256~", rf"{_WORD}{{32,}}+", "sha256~<b64url:43>", anywhere=True),
    _token("databricks_token", "dapi dkea dose", r"[0-9a-fA-F]{32,}+(?:-\d)?", "dapi<hex:32>", "dapi<hex:32>-2"),
    _token("clickhouse_key", "4b1d", r"[0-9A-Za-z]{38}(?![0-9A-Za-z])", "4b1d<b62:38>"),
    SecretRule(
        "ngrok_token",
        rf"{_START}[12][0-9A-Za-z]{{26}}_[0-9A-Za-z]{{21}}{_END}",
        ("2<b62:26>_<b62:21>",),
    ),
    # -- stores of secrets
    _token("vault_token", "hvs. hvb. hvr.", rf"{_WORD}{{16,}}+", "hvs.<b64url:90>", "hvb.<b64url:150>"),
    SecretRule(
        "vault_old_token",
        r"(?<![0-9A-Za-z_.-])[sbr]\.(?=[0-9A-Z]{0,24}[a-z])(?=[0-9a-z]{0,24}[A-Z])[0-9A-Za-z]{24}(?![0-9A-Za-z(])",
        ("s.<b62:24>",),
        ("s.thisIsTheNameOfAMethodOk", "s.aVeryLongMethodNameCall1()"),
        ("s.", "b.", "r."),
        accepts=has_digit_or_is_random,
    ),
    _token(
        "doppler_token",
        "dp.pt. dp.st. dp.ct. dp.sa. dp.scim. dp.audit.",
        r"[0-9A-Za-z_.-]{30,}+",
        "dp.pt.<b62:43>",
        "dp.st.dev_personal.<b62:43>",
    ),
    _token("1password_token", "ops_ey", r"[0-9A-Za-z+/_=.-]{40,}+", "ops_eyJ<b64:250>", anywhere=True),
    SecretRule(
        "1password_secret_key",
        r"\bA3-[0-9A-Z]{6}-(?:[0-9A-Z]{11}|[0-9A-Z]{6}-[0-9A-Z]{5})(?:-[0-9A-Z]{5}){3}\b",
        ("A3-<upper:6>-<upper:6>-<upper:5>-<upper:5>-<upper:5>-<upper:5>",),
        marks=("A3-",),
    ),
    _token("age_key", "AGE-SECRET-KEY-", r"[0-9A-Z-]{8,}+", "AGE-SECRET-KEY-1<upper:58>", anywhere=True),
    # -- models
    _token(
        "anthropic_key",
        "sk-ant-",
        rf"{_WORD}{{8,}}+",
        "sk-ant-api03-<b64url:93>AA",
        "sk-ant-oat01-<b64url:93>AA",
        "sk-ant-admin01-<b64url:93>AA",
        "sk-ant-ort01-<b64url:93>AA",
        anywhere=True,
    ),
    _token(
        "sk_key",
        "sk- sess-",
        r"(?=[0-9A-Za-z_-]{0,60}?[0-9])[0-9A-Za-z_-]{16,}+",
        "sk-<b62:48>",
        "sk-proj-<b64url:120>",
        "sk-svcacct-<b64url:120>",
        "sk-or-v1-<hex:64>",
        "sk-<hex:32>",
        "sess-<b62:40>",
        "sk-lf-<uuid>",
        keeps=("sk-learn-contrib-extra-tools", "a task-2-of-the-phase-3-plan"),
    ),
    _token("groq_key", "gsk_", r"[0-9A-Za-z]{20,}+", "gsk_<b62:52>"),
    _token("xai_key", "xai-", r"[0-9A-Za-z]{30,}+", "xai-<b62:80>"),
    _token("perplexity_key", "pplx-", r"[0-9A-Za-z]{20,}+", "pplx-<b62:48>", anywhere=True),
    _token("replicate_token", "r8_", r"[0-9A-Za-z]{20,}+", "r8_<b62:37>"),
    _token("hugging_face_token", "hf_ api_org_", r"[0-9A-Za-z]{16,}+", "hf_<letters:34>", "api_org_<letters:34>"),
    _token(
        "langsmith_key", "lsv2_ ls__", r"[0-9A-Za-z_]{24,}+", "lsv2_pt_<hex:32>_<hex:10>", "lsv2_sk_<hex:32>_<hex:10>"
    ),
    _token(
        "other_model_key",
        "fw_ tgp_v1_ nvapi- csk- jina_ tvly- fc- pcsk_ voyage- pa- e2b_ exa- wandb_v1_ key_",
        r"(?=[0-9A-Za-z_-]{0,60}?[0-9])[0-9A-Za-z_-]{20,}+",
        "nvapi-<b64url:64>",
        "tgp_v1_<b64url:43>",
        "csk-<b36:48>",
        "jina_<b62:60>",
        "tvly-dev-<b62:32>",
        "fc-<hex:32>",
        "pcsk_<b62:60>",
        "fw_<b62:24>",
        "pa-<b64url:43>",
        "e2b_<hex:40>",
    ),
    # -- payment
    _token(
        "stripe_key",
        "sk_live_ sk_test_ sk_prod_ rk_live_ rk_test_ rk_prod_ pk_live_ pk_test_ whsec_",
        r"[0-9A-Za-z+/=]{10,}+",
        "sk_live_<b62:24>",
        "rk_test_<b62:24>",
        "whsec_<b62:32>",
        anywhere=True,
    ),
    _token(
        "square_token",
        "sq0atp- sq0csp- sq0idp- sq0idb- sq0acp-",
        rf"{_WORD}{{16,}}+",
        "sq0atp-<b64url:22>",
        "sq0csp-<b64url:43>",
        anywhere=True,
    ),
    _token(
        "eaa_token",
        "EAA",
        r"(?=[0-9A-Za-z_-]{0,60}?[0-9])[0-9A-Za-z_-]{22,}+",
        "EAAA<b64url:60>",
        "EAAC<b62:150>",
        "EAAM<b62:150>",
    ),
    _token(
        "paypal_token",
        "access_token$production$ access_token$sandbox$",
        r"[0-9A-Za-z$]{20,}+",
        "access_token$production$<b36:16>$<hex:32>",
        anywhere=True,
    ),
    _token(
        "plaid_token",
        "access-sandbox- access-development- access-production-",
        r"[0-9a-f-]{30,}+",
        "access-sandbox-<uuid>",
        anywhere=True,
    ),
    _token("adyen_key", "AQE", r"[0-9A-Za-z+/=_-]{60,}+(?:-[0-9A-Za-z+/=]{20,}+)?", "AQE<b64:80>"),
    _token(
        "flutterwave_key",
        "FLWSECK_TEST- FLWSECK- FLWSECK_LIVE-",
        r"[0-9A-Za-z]{12,}+(?:-X)?",
        "FLWSECK_TEST-<hex:32>-X",
        anywhere=True,
    ),
    _token("easypost_key", "EZAK EZTK", r"[0-9A-Za-z]{40,}+", "EZAK<b62:54>", "EZTK<b62:54>"),
    _token("shippo_token", "shippo_live_ shippo_test_", r"[0-9a-fA-F]{24,}+", "shippo_live_<hex:40>", anywhere=True),
    _token(
        "duffel_token", "duffel_live_ duffel_test_", r"[0-9A-Za-z_=-]{24,}+", "duffel_test_<b64url:43>", anywhere=True
    ),
    SecretRule(
        "lob_gocardless_key",
        r"(?<![0-9A-Za-z])(?:live|test)_(?:pub_)?(?P<secret>[0-9a-f]{31,35}|[0-9A-Za-z_-]{40})(?![0-9A-Za-z_-])",
        ("live_<hex:35>", "test_<hex:35>", "test_pub_<hex:31>", "live_<b64url:40>"),
        ("test_answers_of_2_agents_are_kept_in_order",),
        ("live_", "test_"),
        accepts=is_random,
    ),
    _token("razorpay_key", "rzp_live_ rzp_test_", r"[0-9A-Za-z]{10,}+", "rzp_live_<b62:14>", anywhere=True),
    _token(
        "shopify_token",
        "shpat_ shpca_ shppa_ shpss_ shptka_ shprt_",
        r"[0-9A-Za-z]{24,}+",
        "shpat_<hex:32>",
        "shpca_<hex:32>",
        "shppa_<hex:32>",
        "shpss_<hex:32>",
        anywhere=True,
    ),
    # -- messages and mail
    SecretRule(
        "slack_token",
        r"xox[a-z](?:\.xox[a-z])?-[0-9A-Za-z-]{8,}+|xapp-\d-[0-9A-Za-z-]{16,}+",
        (
            "xoxb-<digits:11>-<digits:12>-<b62:24>",
            "xoxp-<digits:11>-<digits:12>-<digits:12>-<hex:32>",
            "xapp-1-A<upper:10>-<digits:13>-<hex:64>",
            "xoxe.xoxp-1-<b62:166>",
            "xoxe-1-<b62:146>",
        ),
        marks=("xox", "xapp-"),
    ),
    SecretRule(
        "webhook_url",
        r"(?:hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/"
        r"|\.webhook\.office\.com/webhookb2/|\.logic\.azure\.com[:/]|chat\.googleapis\.com/v1/spaces/"
        r"|hooks\.zapier\.com/hooks/|maker\.ifttt\.com/trigger/"
        r"|outlook\.office\.com/webhook/)(?P<secret>[^\s\"'<>\\]++)",
        (
            "https://hooks.slack.com/services/T<upper:8>/B<upper:8>/<b62:24>",
            "https://discord.com/api/webhooks/<digits:18>/<b64url:68>",
            "https://x.webhook.office.com/webhookb2/<uuid>@<uuid>/IncomingWebhook/<hex:32>/<uuid>",
        ),
        marks=("hook", "/trigger/", "logic.azure.com", "chat.googleapis.com"),
        flags=re.IGNORECASE,
    ),
    SecretRule(
        "discord_token",
        r"(?<![0-9A-Za-z_-])(?:mfa\.[0-9A-Za-z_-]{60,}+"
        r"|[MNO][0-9A-Za-z_-]{22,28}+\.[0-9A-Za-z_-]{6,7}+\.[0-9A-Za-z_-]{27,45}+)",
        ("M<b62:23>.<b62:6>.<b64url:27>", "O<b62:25>.<b64url:6>.<b64url:38>", "mfa.<b64url:84>"),
        marks=(".",),
    ),
    SecretRule(
        "telegram_token",
        r"(?<![0-9A-Za-z])(?:bot)?[0-9]{5,16}:A[0-9A-Za-z_-]{32,36}(?![0-9A-Za-z_-])",
        ("<digits:9>:AA<b64url:33>", "https://api.telegram.org/bot<digits:10>:AA<b64url:33>/getMe"),
        marks=(":A",),
    ),
    SecretRule(
        "twilio_key",
        r"(?<![0-9A-Za-z])(?:AC|SK)[0-9a-f]{32}(?![0-9A-Za-z])",
        ("AC<hex:32>", "SK<hex:32>"),
        marks=("AC", "SK"),
    ),
    _token("sendgrid_key", "SG.", r"[0-9A-Za-z_-]{16,}+\.[0-9A-Za-z_-]{16,}+", "SG.<b64url:22>.<b64url:43>"),
    _token("sendinblue_key", "xkeysib- xsmtpsib-", rf"{_WORD}{{40,}}+", "xkeysib-<hex:64>-<b62:16>", anywhere=True),
    _token("mailgun_key", "key- pubkey-", r"[0-9a-f]{32}(?![0-9A-Za-z])", "key-<hex:32>"),
    SecretRule(
        "mailgun_signing_key",
        r"(?<![0-9A-Za-z-])[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8}(?![0-9A-Za-z-])",
        ("<hex:32>-<hex:8>-<hex:8>",),
    ),
    SecretRule("mailchimp_key", r"(?<![0-9A-Za-z])[0-9a-f]{32}-us\d{1,2}\b", ("<hex:32>-us12",), marks=("-us",)),
    _token(
        "resend_postmark_key",
        "re_",
        r"(?=\w{0,40}?[0-9])(?=\w{0,40}?[A-Z])[0-9A-Za-z]{8}_[0-9A-Za-z]{16,}+",
        "re_<b62:8>_<b62:24>",
    ),
    # -- work and documents
    _token("linear_key", "lin_api_ lin_oauth_", r"[0-9A-Za-z]{20,}+", "lin_api_<b62:40>", anywhere=True),
    _token(
        "notion_token",
        "ntn_ secret_",
        r"(?=[0-9A-Za-z]{0,60}?[0-9])[0-9A-Za-z]{32,}+",
        "ntn_<digits:11><b62:35>",
        "secret_<b62:43>",
    ),
    _token("figma_token", "figd_ figu_ figo_", rf"{_WORD}{{20,}}+", "figd_<b64url:40>", anywhere=True),
    _token("postman_key", "PMAK-", r"[0-9a-f-]{24,}+", "PMAK-<hex:24>-<hex:34>", anywhere=True),
    SecretRule(
        "airtable_token",
        r"(?<![0-9A-Za-z])pat[0-9A-Za-z]{14}\.[0-9a-f]{64}(?![0-9A-Za-z])",
        ("pat<b62:14>.<hex:64>",),
        marks=("pat",),
    ),
    SecretRule(
        "asana_token",
        r"(?<![0-9A-Za-z])[0-9]/[0-9]{10,20}(?:/[0-9]{10,20})?:[0-9a-f]{32}(?![0-9A-Za-z])",
        ("1/<digits:16>:<hex:32>", "2/<digits:16>/<digits:16>:<hex:32>"),
        marks=("/",),
    ),
    _token(
        "hubspot_token",
        "pat-na1- pat-na2- pat-eu1- pat-ap1-",
        r"[0-9a-f-]{30,}+",
        "pat-na1-<uuid>",
        "pat-eu1-<uuid>",
        anywhere=True,
    ),
    _token("typeform_token", "tfp_", r"[0-9A-Za-z_.=-]{30,}+", "tfp_<b64url:59>"),
    _token("contentful_token", "CFPAT-", rf"{_WORD}{{30,}}+", "CFPAT-<b64url:43>", anywhere=True),
    _token(
        "dropbox_token",
        "sl.",
        r"(?=[0-9A-Za-z_.=-]{0,60}?[0-9])[0-9A-Za-z_.=-]{80,}+",
        "sl.<b64url:135>",
        "sl.u.<b64url:200>",
    ),
    _token("frameio_token", "fio-u-", r"[0-9A-Za-z_=-]{40,}+", "fio-u-<b64url:64>"),
    SecretRule(
        "mapbox_token",
        r"(?<![0-9A-Za-z])(?:sk|pk|tk)\.(?:eyJ)?[0-9A-Za-z_-]{50,}+\.[0-9A-Za-z_-]{20,}+",
        ("sk.eyJ<b64url:80>.<b64url:22>", "pk.<b62:60>.<b62:22>"),
        marks=("sk.", "pk.", "tk."),
    ),
    _token("readme_key", "rdme_", r"[0-9a-z]{40,}+", "rdme_<b36:70>"),
    _token("adobe_secret", "p8e-", r"[0-9A-Za-z_-]{24,}+", "p8e-<b36:32>"),
    _token("intercom_token", "dG9rO", r"[0-9A-Za-z+/=]{30,}+", "dG9rO<b62:50>="),
    SecretRule(
        "okta_token",
        rf"{_START}00{_MIXED}[0-9A-Za-z_-]{{40}}{_END}",
        ("00<b64url:40>",),
    ),
    # -- observation and experiments
    _token(
        "grafana_token", "glsa_ glc_ eyJrIjoi", r"[0-9A-Za-z+/=_]{32,}+", "glsa_<b62:32>_<hex:8>", "glc_eyJ<b62:60>"
    ),
    _token(
        "sentry_token",
        "sntrys_ sntryu_ sntrya_ sntryi_",
        r"[0-9A-Za-z+/=_]{32,}+",
        "sntrys_eyJ<b62:80>_<b62:43>",
        "sntryu_<hex:64>",
        anywhere=True,
    ),
    SecretRule(
        "new_relic_key",
        r"(?<![0-9A-Za-z])(?:NR(?:AK|AA|II|IQ|RA|BR)-[0-9A-Za-z_-]{20,}+|NRJS-[0-9a-f]{16,}+|[0-9a-fA-F]{32,40}NRAL)",
        ("NRAK-<upper:27>", "NRJS-<hex:19>", "NRII-<b64url:32>", "<hex:36>NRAL", "<hex:34>FFFFNRAL"),
        marks=("NR",),
    ),
    _token(
        "dynatrace_token",
        "dt0c01. dt0s01. dt0s16.",
        r"[0-9A-Z]{16,}+\.[0-9A-Z]{40,}+",
        "dt0c01.<upper:24>.<upper:64>",
        anywhere=True,
    ),
    _token("posthog_key", "phx_ phc_ phs_", r"[0-9A-Za-z]{30,}+", "phx_<b62:43>", "phc_<b62:43>"),
    _token(
        "launchdarkly_key",
        "sdk- api- mob-",
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "sdk-<uuid>",
        "api-<uuid>",
    ),
    _token("infracost_key", "ico-", r"[0-9A-Za-z]{32}(?![0-9A-Za-z])", "ico-<b62:32>"),
    _token("settlemint_token", "sm_aat_ sm_pat_ sm_sat_", r"[0-9A-Za-z]{12,}+", "sm_pat_<b62:16>", anywhere=True),
    SecretRule(
        "maxmind_key",
        r"(?<![0-9A-Za-z])[0-9A-Za-z]{6}_[0-9A-Za-z]{29}_mmk\b",
        ("<b62:6>_<b62:29>_mmk",),
        marks=("_mmk",),
    ),
    SecretRule(
        "twitter_bearer_token",
        r"(?<![0-9A-Za-z])A{18,}[0-9A-Za-z%]{60,}+",
        ("AAAAAAAAAAAAAAAAAAAAAA<b62:90>",),
        marks=("AAAAAAAAAAAAAAAAAA",),
    ),
    SecretRule(
        "twitter_access_token",
        rf"(?<![0-9A-Za-z-])[0-9]{{15,25}}-{_MIXED}[0-9A-Za-z]{{30,45}}(?![0-9A-Za-z-])",
        ("<digits:18>-<b62:40>",),
        marks=("-",),
    ),
    SecretRule(
        "facebook_app_token",
        r"(?<![0-9A-Za-z])[0-9]{15,16}(?:\||%7C)[0-9A-Za-z_-]{27,40}(?![0-9A-Za-z_-])",
        ("<digits:16>|<b64url:27>",),
        marks=("|", "%7C"),
    ),
    # -- general forms
    SecretRule(
        "json_web_token",
        r"eyJ[0-9A-Za-z_-]{8,}+(?:\.[0-9A-Za-z_-]*+){0,4}",
        ("eyJhbGciOiJIUzI1NiJ9.<b64url:60>.<b64url:43>", "eyJhbGciOi<b64url:60>"),
        marks=("eyJ",),
    ),
    SecretRule(
        "password_hash",  # of crypt, Argon2, scrypt
        r"\$(?:apr1|1|2[aby]|5|6|7|y|gy|argon2[a-z]{0,2}|scrypt|pbkdf2[0-9a-z-]{0,12})\$[^\s:\"']{8,}+",
        (
            "bob:$6$<b64:30>:19000",
            "$2b$<b64:40>",
            "$argon2id$<b64:40>",
            "bob:$apr1$<b62:8>$<b64:22>",
            "$y$j9T$<b64:22>$<b64:43>",
        ),
        ("costs $1 or $2 or $5",),
        ("$",),
    ),
    SecretRule(
        "base64_key",  # 40 characters (AWS), or 48 and more
        rf"{_START}{_NO_DIGEST}{_NO_IMAGE}{_MIXED}(?:[0-9A-Za-z+/]{{48,}}+|[0-9A-Za-z+/]{{40}})={{0,2}}{_END}",
        ("the key is <b64:64>= ok", "<b64:40>"),
        (
            "at /home/me/Projects/shop2/src/components/CartTotalComponent/index.js:10",
            "sha512-MV7PdBCcWbPnlUlzRTOdDo1vQ1rZ2hQTI3UFPqHeuQ0v6MpSYsr6Aqrbdv8gPRlUx2bbzQ1Pqrl7XpsZmr5rUw==",
        ),
        accepts=is_random,
    ),
    SecretRule(
        "padded_base64",
        rf"{_START}{_NO_DIGEST}{_NO_IMAGE}{_MIXED}[0-9A-Za-z+/]{{18,}}+={{1,2}}(?![0-9A-Za-z+/_=-])",
        ("RFdfUEFTU1dPUkQ9aHVudGVyMg==", "<b64:43>="),
        (
            "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7==",
            "h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ),
        ("=",),
    ),
    SecretRule(
        "random_word",  # 32 characters and more, of mixed case and with digits
        rf"{_START}{_NO_DIGEST}{_MIXED}[0-9A-Za-z+_-]{{32,}}+={{0,2}}{_END}",
        ("seen: <b62:32>", "x_<b62:40>_y", "<b64url:40>"),
        (
            "src/components/AuthenticationTokenProviderFactoryBean2.java",
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnop0123456789",
            "session-2025-11-03T10-22-41Z-integration-report",
        ),
        accepts=is_random,
    ),
    SecretRule(
        "word_of_24",  # as tokens of Vercel
        rf"(?<![0-9A-Za-z+/_.@-])(?:{_MIXED}[0-9A-Za-z]{{24}}|vc(?=[a-z]{{0,22}}[A-Z0-9])[0-9A-Za-z]{{22}})"
        r"(?![0-9A-Za-z+/_=@-]|\.[0-9A-Za-z])",
        ("<b62:24>", "vc<b62:22>"),
        ("TransportLayerSecurityV2", "req_011CSHoEeqs5C35K2UUqR7Fy"),
        accepts=is_random,
    ),
    SecretRule(
        "hex_key",  # no digest
        r"(?<![0-9a-fA-F-])(?:0x)?(?=[0-9]{0,200}[a-fA-F])[0-9a-fA-F]{32,}+(?!-)",
        ("key <hex:32>", "0x<hex:64>", "<hex:48>"),
        (
            "commit e83c5163316f89bfbde7d9ab23ca25604af686b3",
            "md5: 9e107d9d372bb6826bd81d3542a419d6",
            "x-request-id: 7f9c2ba4e88f827d616045507605853e",
            "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "main.9e107d9d372bb6826bd81d3542a419d6.js",
            "9e107d9d372bb6826bd81d3542a419d6  a.txt",
            "n: 12345678901234567890123456789012",
        ),
        accepts=_no_digest,
    ),
    SecretRule(
        "bitcoin_key",
        r"(?<![0-9A-Za-z])(?:5[1-9A-HJ-NP-Za-km-z]{50}|[KL][1-9A-HJ-NP-Za-km-z]{51}"
        r"|[xyz]prv[0-9A-Za-z]{80,}+)(?![0-9A-Za-z])",
        ("5<base58:50>", "xprv<base58:107>"),
    ),
)
"""Secrets known by their own characters, in the order in which they are hidden."""
