"""Check the splits: against each other, against the gate, and for their composition.

No finding depends on the order of the rows. The modules `overlap`, `sample_size`, `balance` and `distribution_shift`
describe what is compared, and the limits for a finding.
"""

from collections.abc import Mapping, Sequence

from finetune.config.types import SPLITS, Split
from finetune.config.validate import ValidateParams
from finetune.records.examples import Example, text_key
from finetune.validate.checks.balance import check_balance
from finetune.validate.checks.distribution_shift import check_shift
from finetune.validate.checks.overlap import check_overlap
from finetune.validate.checks.sample_size import check_test_size
from finetune.validate.codes import CODES, Code
from finetune.validate.findings import Finding

MOST_REPEATED = 0.05  # of the test examples; from there on intervals are too narrow by more than rounding

CODES |= {
    "split-empty": Code("error", "run", "A split has no rows left.", binding=True, in_params=False),
    "test-prompts-repeated": Code("warning", "verdict", "Copies of a prompt add no evidence."),
    "test-prompts-mostly-repeated": Code("error", "verdict", "Over 5% of test prompts are copies.", in_params=False),
}


def check_data(params: ValidateParams, splits: Mapping[Split, Sequence[Example]]) -> list[Finding]:
    """Return all findings about the splits."""
    return [
        *check_empty(splits),
        *check_overlap(params, splits),
        *check_repeated_prompts(params, splits["test"]),
        *check_test_size(params, splits["test"]),
        *check_balance(params, splits),
        *check_shift(splits),
    ]


def check_empty(splits: Mapping[Split, Sequence[Example]]) -> list[Finding]:
    """Find empty splits: without rows there is nothing to train on, to choose a checkpoint by, or to evaluate on."""
    have = ", ".join(f"{name} {len(splits[name]):,}" for name in SPLITS)
    return [
        Finding(
            "split-empty",
            f"data/prepared/{name}.jsonl",
            f"has no row ({have})",
            f"set a larger data.split.{name}, or loosen data.filters",
        )
        for name in SPLITS
        if not splits[name]
    ]


def check_repeated_prompts(params: ValidateParams, test: Sequence[Example]) -> list[Finding]:
    """Find copies of a prompt: they are not new evidence, but the gate's intervals assume independent examples."""
    repeated = len(test) - len({text_key(example.prompt) for example in test})
    if not repeated:
        return []
    mostly = repeated > MOST_REPEATED * len(test)
    what = (
        f"{repeated:,} of {len(test):,} test examples ({100 * repeated / len(test):.3g}%) repeat a prompt, "
        "but intervals "
        "assume independent examples"
    )
    duplicates = params.data.duplicates
    drop = "exact: drop" if duplicates.exact == "keep" else "near: drop" if duplicates.near != "drop" else None
    fix = "replace them with other test examples" + (f", or set data.duplicates.{drop}" if drop else "")
    code = "test-prompts-mostly-repeated" if mostly else "test-prompts-repeated"
    return [Finding(code, "data/prepared/test.jsonl", what, fix)]
