"""Find hostile or risky content in a text; report its kind, never the content.

Kinds are `category/kind`, as in `secrets/github_token`; the categories are the keys of `data.risks`.

One RE2 set searches each text once for all kinds; only its matches are examined further. Well-maintained libraries make
the decisions where they exist: detect-secrets, phonenumbers, python-stdnum. All plugins of detect-secrets that
recognize a token by its form are used. Its entropy plugins are not, because they flag a third of ordinary prose, nor
its keyword plugin, which costs 1.5 ms per row. Public IP addresses are not reported: they are not secret, and version
numbers look the same.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple, get_args

Category = Literal["control_tokens", "control_characters", "secrets", "personal_data"]
RISK_CATEGORIES: tuple[Category, ...] = get_args(Category)

# Strings that chat templates treat as structure. Omitted: <think>, <tool_call> and similar ones, which are legitimate
# content of many data sets; [ARGS] and [IMG], which occur in help texts and BBCode.
CONTROL_TOKENS = (
    r"<\|[\w.:-]{1,40}\|>",  # ChatML (Qwen, Yi, InternLM2), Llama 3 and 4, Phi, gpt-oss, Command R, GLM, Kimi, Granite
    r"<｜[^\s<>｜]{1,40}｜>",  # DeepSeek: fullwidth bars, and U+2581 for spaces  # noqa: RUF001
    r"\[/?INST\]|<</?SYS>>",  # Llama 2; earlier Mistral too
    r"\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]",  # Mistral
    r"</?s>",  # Llama 2, Mistral: begin and end of text. Also struck-out HTML, which their tokenizers treat alike
    r"<(?:start|end)_of_turn>|<[be]os>",  # Gemma 1 to 3
    r"<\|(?:turn|channel|tool|tool_call|tool_response)>",  # Gemma 4, which closes them as in the next line
    r'<(?:turn|channel|tool|tool_call|tool_response|\|")\|>',  # and puts strings between <|"|>
    r"\[gMASK\]|<sop>",  # GLM
    r"<(?:BOS|EOS)_TOKEN>",  # Command R
    r"<extra_id_[0-9]{1,2}>",  # Nemotron 4
)
CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{80}-\x{9f}]"
BIDIRECTIONAL = r"[\x{61c}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2066}-\x{2069}]"
# Omitted: the joiners U+200C and U+200D, which Persian, Indic scripts and emoji need; the soft hyphen, a common hyphen
# on the web. One variation selector belongs to an emoji and careless programs double it; a longer run hides bytes.
INVISIBLE = (
    r"[\x{200b}\x{2060}-\x{2064}\x{206a}-\x{206f}\x{feff}]|\x{1f3f4}?[\x{e0000}-\x{e007f}]+"
    r"|[\x{fe00}-\x{fe0f}\x{e0100}-\x{e01ef}]{4}"
)
# The three flags that are encoded with tag characters: a black flag, the region, an end.
FLAGS = {f"\U0001f3f4{''.join(chr(0xE0000 + ord(letter)) for letter in region)}\U000e007f"
         for region in ("gbeng", "gbsct", "gbwls")}  # fmt: skip

EMAIL = r"[\pL\pN_.%+'-]+@(?:[\pL\pN-]+\.)+[A-Za-z]{2,}"
# Only international numbers: without a country code, a national one looks like any other number. E.164 allows 15
# digits; thirty characters can hold them with all their separators.
PHONE = r"[+\x{ff0b}][ (]{0,2}[0-9][0-9 ()./\x{a0}\x{2010}-\x{2015}-]{6,30}"
PAYMENT_CARD = (
    r"\b[2-6](?:[0-9]{13,18}|[0-9]{3}[ -][0-9]{4}[ -][0-9]{4}[ -][0-9]{4,7}|[0-9]{3}[ -][0-9]{6}[ -][0-9]{4,5})\b"
)
IBAN = r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"
US_SSN = r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b"

# Common endings of mail addresses, in addition to those of countries. If any ending were allowed, `matrix@layer.weight`
# and `name@property.setter` would be addresses.
ENDINGS = {
    *("com", "net", "org", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "mobi", "email", "dev", "app"),
    *("cloud", "online", "site", "tech", "store", "shop", "xyz", "eu", "uk"),
}
RESERVED = re.compile(r"(?:^|\.)example\.(?:com|net|org)$")  # RFC 2606: examples in manuals, not real addresses
IN_ADDRESS = re.compile(r"//[^\s/]*$")  # https://name:word@host is basic_auth_credentials, or harmless
# Visa (without its obsolete 13 digits, which look like EAN codes), Mastercard, American Express, Diners, Discover, JCB
# and UnionPay.
ISSUERS = re.compile(
    r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|(?:6011|64[4-9]\d|65\d\d|35(?:2[89]|[3-8]\d))\d{12,15}|62\d{14,17}"
)

# Syntax that RE2 lacks or interprets more narrowly than Python's re: it takes \s, \d and \w as ASCII.
LOOKAROUND = re.compile(r"\(\?<?[=!][^()]*\)")
COUNT = re.compile(r"\{(\d+)(?:,\d*)?\}\??")
OPTIONAL_TAILS = (r"""(?:"|\'|)""", r'(?:\s|"|$)')
SPACE = r"[\s\pZ\x0b\x1c-\x1f\x{85}]"
WIDER = (
    ("{50,1024}", "{50,}"),  # RE2 counts to 1000
    (r"(?:\s|", f"(?:{SPACE}|"),
    (r"\s*", f"{SPACE}*"),
    (r"\d", r"\p{Nd}"),
    (r"[\w", r"[\pL\pN_"),
)

MARGIN = 64  # bytes on either side of a candidate, for checks that need one letter or the head of a URL
MAX_CANDIDATES = 1000  # a text with more candidates that all prove harmless is an attack or a table of numbers
SET_MEMORY = 64 << 20  # bytes of RE2's states; with its default of 8 MiB the worst texts take four times as long
LONGEST_LOCAL = 64  # letters before the @, RFC 5321


class Candidate(NamedTuple):
    """The match of a pattern, with a margin on both sides."""

    before: str
    found: str
    after: str


@dataclass(frozen=True, slots=True)
class Detector:
    """One pattern of a kind; `net` matches at least wherever `exact` does, and `decide` makes the final decision."""

    kind: str
    net: str
    exact: str = ""
    decide: Callable[[Candidate], bool] | None = None


def find_risks(text: str) -> list[str]:
    """Return the kinds of risks in the text, sorted and without duplicates; never raises, and never returns text."""
    detectors, net, patterns = _net()
    data = text.encode("utf-8", "replace")  # lone surrogates become question marks
    found: set[str] = set()
    for at in net.Match(data) or ():
        detector = detectors[at]
        if detector.kind not in found and (detector.decide is None or _holds(patterns[at], detector.decide, data)):
            found.add(detector.kind)
    return sorted(found)


def category_of(kind: str) -> Category:
    """Return the category of a kind. Raise ValueError for an unknown one."""
    name = kind.partition("/")[0]
    for category in RISK_CATEGORIES:
        if name == category:
            return category
    raise ValueError(f"{kind!r} is not in any of the categories {', '.join(RISK_CATEGORIES)}")


def _holds(pattern: Any, decide: Callable[[Candidate], bool], data: bytes) -> bool:
    """Return whether a candidate in the data is confirmed; if there are too many, it is assumed."""
    for number, match in enumerate(pattern.finditer(data), start=1):
        if number > MAX_CANDIDATES:
            return True
        start, end = match.span()
        parts = data[max(0, start - MARGIN) : start], data[start:end], data[end : end + MARGIN]
        if decide(Candidate(*(part.decode("utf-8", "replace") for part in parts))):
            return True
    return False


@cache
def _net() -> tuple[tuple[Detector, ...], Any, tuple[Any, ...]]:
    """Return the detectors, the set of their nets, and their exact patterns, in the same order; cached per process."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    detectors = (*_control_detectors(), *_secret_detectors(), *_personal_detectors())
    patterns = tuple(re2.compile(detector.exact or detector.net, options) for detector in detectors)
    options.max_mem = SET_MEMORY
    net = re2.Set.SearchSet(options)
    for detector in detectors:
        net.Add(detector.net)
    net.Compile()
    return detectors, net, patterns


def _control_detectors() -> Iterator[Detector]:
    for pattern in CONTROL_TOKENS:
        yield Detector("control_tokens/chat_template", pattern)
    yield Detector("control_characters/control", CONTROL)
    yield Detector("control_characters/bidirectional", BIDIRECTIONAL)
    yield Detector("control_characters/invisible", INVISIBLE, decide=lambda candidate: candidate.found not in FLAGS)


def _secret_detectors() -> Iterator[Detector]:
    """Yield one detector for each pattern of the plugins."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.plugins.ip_public import IPPublicDetector

    plugins: dict[str, Any] = get_mapping_from_secret_type_to_class()
    for name, plugin in sorted(plugins.items()):
        if issubclass(plugin, RegexBasedDetector) and plugin is not IPPublicDetector:
            kind = "secrets/" + re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
            for pattern in plugin.denylist:
                net, exact = _for_re2(pattern)
                yield Detector(kind, net, exact, partial(_is_secret, plugin()))


def _for_re2(pattern: re.Pattern[str]) -> tuple[str, str]:
    """Return a net and an exact pattern for RE2 that match wherever a plugin's pattern does.

    The net counts to 2 where the pattern counts to 40. RE2 makes a state for every set of positions that a text can
    have in all patterns; with full counts, Base64 makes millions of them and takes two hundred times as long as prose.
    """
    exact = LOOKAROUND.sub("", pattern.pattern)
    net = exact
    for tail in OPTIONAL_TAILS:
        net = net.removesuffix(tail)
    net = COUNT.sub(_short_count, net)
    for narrow, wide in WIDER:
        net, exact = net.replace(narrow, wide), exact.replace(narrow, wide)
    fold = "(?i)" if pattern.flags & re.IGNORECASE else ""
    return fold + net, fold + exact


def _short_count(match: re.Match[str]) -> str:
    least = min(2, int(match[1]))
    if least == 0:
        return "*"
    ends = not match.string[match.end() :].strip(")")  # at the end, more repetitions change nothing
    return f"{{{least}}}" if ends else f"{{{least},}}"


def _is_secret(plugin: Any, candidate: Candidate) -> bool:
    try:
        return any(plugin.analyze_string("".join(candidate)))
    except RecursionError:  # a JSON web token nested a thousand levels deep, which no legitimate one is
        return True


def _personal_detectors() -> Iterator[Detector]:
    for name, pattern, decide in (
        ("email", EMAIL, _is_email),
        ("phone", PHONE, _is_phone),
        ("payment_card", PAYMENT_CARD, _is_payment_card),
        ("iban", IBAN, _is_iban),
        ("us_ssn", US_SSN, _is_us_ssn),
    ):
        yield Detector(f"personal_data/{name}", pattern, decide=decide)


def _is_email(candidate: Candidate) -> bool:
    """Return whether it is a mail address; not `git@` hosts, `a@b.to(device)` and torch's `a@b.mT`."""
    local, _, domain = candidate.found.rpartition("@")
    ending = domain.rpartition(".")[2]
    return (
        len(local) <= LONGEST_LOCAL
        and local != "git"
        and not candidate.after.startswith("(")
        and (ending.islower() or ending.isupper())
        and ending.lower() in _endings()
        and not RESERVED.search(domain.lower())
        and not IN_ADDRESS.search(candidate.before)
    )


@cache
def _endings() -> frozenset[str]:
    from phonenumbers import SUPPORTED_REGIONS

    return frozenset(ENDINGS | {region.lower() for region in SUPPORTED_REGIONS})


def _is_phone(candidate: Candidate) -> bool:
    from phonenumbers import PhoneNumberMatcher

    return not _is_sum(candidate) and PhoneNumberMatcher(candidate.found, None).has_next()


def _is_sum(candidate: Candidate) -> bool:
    """Return whether the preceding + is an addition."""
    return candidate.before[-1:].isalnum() or candidate.before[-1:] in tuple("_)]")


def _is_payment_card(candidate: Candidate) -> bool:
    from stdnum import luhn

    digits = candidate.found.replace(" ", "").replace("-", "")
    alike = " " not in candidate.found or "-" not in candidate.found
    stands_alone = _stands_alone(candidate)
    return alike and stands_alone and ISSUERS.fullmatch(digits) is not None and luhn.is_valid(digits)


def _is_iban(candidate: Candidate) -> bool:
    """Return whether it is an IBAN, possibly without the last words: a bank's name in capitals looks like a part of it.

    Length, form and check digits decide; lists of a country's banks, which stdnum could use as well, become outdated.
    """
    from stdnum import iban

    words = candidate.found.split(" ")
    return _stands_alone(candidate) and any(
        iban.is_valid("".join(words[:end]), check_country=False) for end in range(len(words), 0, -1)
    )


def _is_us_ssn(candidate: Candidate) -> bool:
    from stdnum.us import ssn

    return _stands_alone(candidate) and ssn.is_valid(candidate.found)


def _stands_alone(candidate: Candidate) -> bool:
    """Return whether a number is not part of a longer one, such as a fraction, a UUID or a serial number."""
    return candidate.before[-1:] not in tuple(".-+/_") and not re.match(r"[-_/]|[.,]\d", candidate.after)
