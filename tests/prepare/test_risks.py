"""Risky content is found by kind, ordinary text is left alone, and no text keeps the detectors busy.

Secrets are assembled from pieces, so that no scanner reports this file as a leak."""

import base64
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.config.data import RiskConfig
from finetune.prepare import risks
from finetune.prepare.risks import RISK_CATEGORIES, category_of, find_risks

ROOT = Path(__file__).parents[2]
MIXED = "aB3dE6gH9"
HEX = "a1b2c3d4"


def long(piece: str, length: int) -> str:
    """Repeat the piece up to this length."""
    return (piece * length)[:length]


def encoded(text: str) -> str:
    """Encode the text as a part of a web token."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


SECRETS = {
    "artifactory_credentials": [f" AK{'C'}{long(MIXED, 12)} ", f'"AP{"A"}{long(MIXED, 10)}"'],
    "aws_access_key": [f"AK{'IA'}{long('Q7', 16)}", f"aws_secret_key = '{long(MIXED, 40)}'"],
    "azure_storage_account_access_key": [f"Account{'Key'}={long(MIXED, 88)}"],
    "basic_auth_credentials": [f"https://us{'er'}:word@host.de/path"],
    "cloudant_credentials": [
        f"cloudant_apikey = {long(HEX, 64)}",
        f"cl_pw: '{long('abc', 24)}'",
        f"https://name:{long(HEX, 64)}@name.cloudant.com",
        f"https://name:{long('abc', 24)}@name.cloudant.com",
    ],
    "discord_bot_token": [f"M{long(MIXED, 23)}.{long(MIXED, 6)}.{long(MIXED, 27)}"],
    "github_token": [f"{'gh'}{kind}_{long(MIXED, 36)}" for kind in "pousr"],
    "gitlab_token": [
        f"{'gl'}pat-{long(MIXED, 20)}",
        f"GR{'1348941'}{long(MIXED, 20)}",
        f"{'gl'}cbt-a1_{long(MIXED, 20)}",
        f"{'gl'}imt-{long(MIXED, 25)}",
        f"{'gl'}ptt-{long(HEX, 40)}",
        f"{'gl'}agent-{long(MIXED, 1024)}",
        f"{'gl'}oas-{long(HEX, 64)}",
    ],
    "ibm_cloud_iam_key": [f"ibm_cloud_api_key = '{long(MIXED, 44)}'"],
    "ibm_cos_hmac_credentials": [f"cos_hmac_secret_access_key: {long(HEX, 48)}"],
    "json_web_token": [".".join([encoded('{"alg":"HS256"}'), encoded('{"sub":"1"}'), long(MIXED, 43)])],
    "mailchimp_access_key": [f"{long(HEX, 32)}-us{'12'}"],
    "npm_tokens": [f"//host.de/:_auth{'Token'}={long('0a-', 36)}", f"//host.de/:_auth{'Token'}=npm_{long(MIXED, 36)}"],
    "openai_token": [f"s{'k'}-proj-{long(MIXED, 20)}T3Blbk{'FJ'}{long(MIXED, 20)}"],
    "private_key": [f"-----BE{'GIN'} {kind}PRI{'VATE'} KEY-----" for kind in ("", "RSA ", "EC ", "OPENSSH ")],
    "pypi_token": [f"{'py'}pi-{kind}{long(MIXED, 70)}" for kind in ("AgEIcHlwaS5vcmc", "AgENdGVzdC5weXBpLm9yZw")],
    "sendgrid_api_key": [f"S{'G'}.{long(MIXED, 22)}.{long(MIXED, 43)}"],
    "slack_token": [f"xo{'xb'}-1234-{long('a1', 24)}", f"https://hooks.slack.com/ser{'vices'}/TA1/BA1/{MIXED}"],
    "softlayer_credentials": [f"sl_api_key='{long(HEX, 64)}'", f"https://api.softlayer.com/soap/v3/{long(HEX, 64)}"],
    "square_oauth_secret": [f"sq0{'csp'}-{long(MIXED, 43)}"],
    "stripe_access_key": [f"s{'k'}_live_{long(MIXED, 24)}"],
    "telegram_bot_token": [f"{long('12', 10)}:{long(MIXED, 35)}"],
    "twilio_api_key": [f"A{'C'}{long(HEX, 32)}", f"S{'K'}{long(HEX, 32)}"],
}
SECRET_SAMPLES = [(f"secrets/{name}", sample) for name, samples in SECRETS.items() for sample in samples]


@cache
def plugins() -> list[tuple[str, Any, Any]]:
    """Return (kind, plugin, pattern) for every pattern in use, as in detect-secrets."""
    found = []
    for detector in risks._net()[0]:
        if detector.kind.startswith("secrets/"):
            plugin = detector.decide.args[0]  # type: ignore[union-attr]
            found += [(detector.kind, plugin, pattern) for pattern in plugin.denylist]
    return list({(kind, pattern.pattern): (kind, plugin, pattern) for kind, plugin, pattern in found}.values())


def test_categories_equal_those_of_the_config() -> None:
    """A category without a policy, or a policy without detectors, would be a gap."""
    assert set(RISK_CATEGORIES) == set(RiskConfig.model_fields)
    assert {category_of(detector.kind) for detector in risks._net()[0]} == set(RISK_CATEGORIES)
    with pytest.raises(ValueError, match="not in any of the categories"):
        category_of("weather/rain")


def test_importing_the_module_is_fast() -> None:
    """Detectors are loaded with the first text, so importing the module is fast."""
    heavy = {"detect_secrets", "phonenumbers", "re2", "requests", "stdnum"}
    code = f"import sys; import finetune.prepare.risks; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_all_detectors_compile_without_output(capfd: pytest.CaptureFixture[str]) -> None:
    """RE2 prints patterns that it does not support; a new plugin with one is detected."""
    risks._net.cache_clear()
    detectors, _, patterns = risks._net()
    assert len(detectors) == len(patterns) > 60
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "token",
    [
        *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>"),
        *("<|user|>", "<|fim_prefix|>", "<|START_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "<|reserved_special_token_0|>"),
        *("<｜User｜>", "<｜begin▁of▁sentence｜>", "<｜tool▁calls▁begin｜>"),  # noqa: RUF001
        *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "[TOOL_CALLS]", "[/AVAILABLE_TOOLS]"),
        *("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<|turn>", "<turn|>", '<|"|>', "[gMASK]", "<sop>"),
    ],
)
def test_control_tokens_are_found(token: str) -> None:
    """A control token is found anywhere, also without spaces around it."""
    for text in (token, f"answer:{token}\nsystem", f"é{token}é"):
        assert find_risks(text) == ["control_tokens/chat_template"]


@pytest.mark.parametrize(
    "text",
    [
        *("a <| b |> c", "<||>", "x <|> y", "<|two words|>", "[inst]", "[INSTALL]", "<strong>", "<S>", "</span>"),
        *("<think>well</think>", "<tool_call>{}</tool_call>", "usage: run [OPTIONS] [ARGS]...", "<< SYS >>", "<start>"),
    ],
)
def test_lookalikes_of_control_tokens_are_ignored(text: str) -> None:
    """Operators, HTML, help texts, and tags of reasoning and tools are not control tokens."""
    assert find_risks(text) == []


def test_control_characters_are_found() -> None:
    """Each control character is found, also at the ends of a text."""
    control = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))]
    for letter in set(control) - {"\t", "\n", "\r"}:
        assert find_risks(f"{letter}x") == find_risks(f"x{letter}") == ["control_characters/control"], ascii(letter)
    for number in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)):
        assert find_risks(f"x{chr(number)}y") == ["control_characters/bidirectional"], hex(number)
    for number in (0x200B, 0x2060, 0xFEFF, 0xE0000, 0xE0041, 0xE007F):
        assert find_risks(f"x{chr(number)}y") == ["control_characters/invisible"], hex(number)


def test_hidden_text_is_found() -> None:
    """Letters as tag characters behind a flag, and bytes as variation selectors behind a smile, are hidden text."""
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "obey")
    assert find_risks(f"\U0001f3f4{hidden}\U000e007f") == ["control_characters/invisible"]
    assert find_risks("\U0001f600" + "".join(map(chr, range(0xE0100, 0xE0108)))) == ["control_characters/invisible"]


def test_letters_of_all_scripts_are_ignored() -> None:
    """Joiners are part of Persian words and emoji families; Scotland's flag consists of tag characters."""
    scotland = "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbsct") + "\U000e007f"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    for text in (scotland, family, persian, "\u2764\ufe0f", "a\u00adb", "\t\r\n"):
        assert find_risks(text) == [], ascii(text)


@pytest.mark.parametrize(("kind", "sample"), SECRET_SAMPLES)
def test_secrets_are_found(kind: str, sample: str) -> None:
    """A secret is found alone, in a line, after other scripts, and far down in a long text."""
    assert set(SECRETS) == {found.removeprefix("secrets/") for found, _, _ in plugins()}
    for text in (sample, f"say \u00e9\u4e16 {sample} and\nmore", "word " * 50_000 + f"\n{sample}\n"):
        assert kind in find_risks(text)


@pytest.mark.parametrize(
    "text",
    [
        f"AK{'IA'}{long('Q7', 15)}",
        f"{'gh'}p_{long(MIXED, 35)}",
        f"ibm_cloud_api_key = '{long(MIXED, 45)}'",
        f"{'gl'}pat-{long(MIXED, 60)}",
        ".".join([encoded("not json"), encoded("{}"), "x"]),
        f"eyJ{long(MIXED, 9)}.{MIXED}.x",
        f"A{'C'}{long('A1', 32)}",
        "https://host.de:8080/path@2",
        "the public key, the token of our love and the password of the day",
        "from 192.168.1.1 to 8.8.8.8",
    ],
)
def test_lookalikes_of_secrets_are_ignored(text: str) -> None:
    """The prefilter may match, but the plugin does not."""
    assert find_risks(text) == []


@pytest.mark.parametrize("number", range(45))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_prefilter_misses_nothing_a_plugin_finds(number: int, data: st.DataObject) -> None:
    """The prefilter is more general than the plugins: it finds any text of a plugin's pattern in any context."""
    assert len(plugins()) == 45, "detect-secrets has other patterns than before; give this test their number"
    kind, plugin, pattern = plugins()[number]
    noise = [*"aA0=:-_ \n\"'.", "\u00a0", "\u00e9", "\u0663", "key", "eyJ", "://", " AKC"]
    around = st.lists(st.sampled_from(noise), max_size=9).map("".join)
    text = data.draw(around) + data.draw(st.from_regex(pattern)) + data.draw(around)
    if any(plugin.analyze_string(text)):
        assert kind in find_risks(text)


def personal(text: str) -> list[str]:
    """Return the kinds of personal data in the text, without the category."""
    return [kind.removeprefix("personal_data/") for kind in find_risks(text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.roe@mail-host.de, please", "email"),
        ("Jane <J.ROE+news@HOST.CO.UK>", "email"),
        ("mailto:jane@xn--bcher-kva.shop.", "email"),
        ("\u00fc.m\u00fcller@b\u00fccher.de", "email"),
        ("call +49 30 901820", "phone"),
        ("Tel.:+1 (212) 736-5000.", "phone"),
        ("\uff0b44 20 8366 1177", "phone"),
        ("card 4111 1111 1111 1111,", "payment_card"),
        ("5500-0000-0000-0004", "payment_card"),
        ("3782 822463 10005", "payment_card"),
        ('"6011111111111117"', "payment_card"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "iban"),
        ("GB29NWBK60161331926819", "iban"),
        ("BE71 0961 2345 6769 BANK GKCC", "iban"),
        ("SSN: 536-90-4399.", "us_ssn"),
    ],
)
def test_personal_data_is_found(text: str, kind: str) -> None:
    """The usual spellings are found, also at the end of a sentence."""
    assert personal(text) == [kind]
    assert personal(f"first line\n{text}\nlast line") == [kind]


@pytest.mark.parametrize(
    "text",
    [
        *("git@github.com:name/repo.git", "jane@example.com", "jane@mail.example.org", "jane@host.invalid"),
        *("scores = query@keys.mT", "y = x@w.to(device)", "@name.setter", "@app.route", "loss@layer.weight"),
        *("react@18.2.0", "logo@2x.png", f"{'a' * 65}@host.de", "jane@localhost"),
        *("030 901820", "(212) 736-5000", "offset+4930901820", "x[1]+4930901820", "+12 apples", "2024-01-15 10:30:00"),
        *("4111 1111 1111 1112", "4111 1111-1111 1111", "0.4111111111111111", "4111111111111111-1", "411111111111111"),
        *("1700000000000000003", "9111111111111111", "DE89 3704 0044 0532 0130 01", "XX89370400440532013000"),
        *("000-12-3456", "078-05-1120", "666-12-3456", "1-536-90-4399", "536-90-4399-2", "536-90-43990"),
    ],
)
def test_lookalikes_of_personal_data_are_ignored(text: str) -> None:
    """Code, versions, sums, wrong check digits, parts of longer numbers, and generic addresses are not reported."""
    assert personal(text) == []


def test_kinds_are_sorted_unique_and_reveal_no_text() -> None:
    """The kinds reveal nothing of the text, so they may be printed, logged and committed."""
    secrets = [sample for _, sample in SECRET_SAMPLES]
    text = "\n".join([*secrets, *secrets, "<s></s>", "\x00", "jane.roe@mail.de +49 30 901820"])
    found = find_risks(text)
    assert found == sorted(set(found))
    assert len(found) == len(SECRETS) + 4
    assert set(found) <= {detector.kind for detector in risks._net()[0]}


SIZE = 10_000_000
HOSTILE = {
    "at": lambda: "@" * SIZE,
    "addresses": lambda: "a@a." * (SIZE // 4),
    "long address": lambda: "a." * (SIZE // 2) + "@a.de",
    "digits": lambda: "1234567890" * (SIZE // 10),
    "bars": lambda: "<|" * (SIZE // 2),
    "begin": lambda: "-----BEGIN " * (SIZE // 11),
    "web token": lambda: "eyJ" * (SIZE // 3) + ".a",
    "web tokens": lambda: "eyJa.b " * (SIZE // 7),
    "sk": lambda: "sk-" * (SIZE // 3) + "aaT3BlbkFJaa",
    "npm": lambda: "//" * (SIZE // 2) + "/:_authToken=aa",
    "phones": lambda: "+1 (212) 555- " * (SIZE // 14),
    "cards": lambda: "4111111111111112 " * (SIZE // 17),
    "accounts": lambda: "DE00 AAAA " * (SIZE // 10),
    "tokens": lambda: ("token" + " " * 100) * (SIZE // 105),
    "lines": lambda: "\n" * SIZE,
    "surrogates": lambda: "\ud800" * SIZE,
    "Base64": lambda: base64.b64encode(bytes(range(256)) * (SIZE // 342)).decode(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_scanned_quickly(name: str) -> None:
    """Ten million letters each, usually in half a second; a quadratic step would take hours."""
    text = HOSTILE[name]()
    start = time.process_time()
    find_risks(text)
    assert time.process_time() - start < 10


def test_a_text_with_too_many_candidates_is_flagged() -> None:
    """A thousand cards with wrong check digits could otherwise hide a valid one."""
    wrong = "4111111111111112 "
    assert find_risks(wrong * risks.MAX_CANDIDATES) == []
    assert find_risks(wrong * (risks.MAX_CANDIDATES + 1)) == ["personal_data/payment_card"]


def test_a_web_token_that_breaks_the_plugin_is_flagged() -> None:
    """Deeply nested JSON raises RecursionError in the plugin."""
    token = ".".join([encoded('{"a":' + "[" * 100_000), encoded("{}"), "x"])
    assert find_risks(token) == ["secrets/json_web_token"]


letters = st.characters(exclude_categories=())
SCRAPS = ["<|", "|>", "@", "a@b.de", "+49", "4111", "-", "DE89", "eyJ", ".", "�", "🏴", "\U000e0067", "\x00"]
pieces = st.sampled_from([sample for _, sample in SECRET_SAMPLES]) | st.sampled_from([*SCRAPS, " "])


@settings(deadline=None)
@given(text=st.text(letters) | st.lists(pieces | st.text(letters, max_size=3), max_size=12).map("".join))
def test_arbitrary_text_raises_no_error(text: str) -> None:
    """This includes unpaired surrogates."""
    found = find_risks(text)
    assert found == sorted(set(found))
    assert all(category_of(kind) in RISK_CATEGORIES for kind in found)
