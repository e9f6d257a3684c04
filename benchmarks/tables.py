"""The tables of docs/benchmarks.md and README.md, generated from the newest raw results.

    python benchmarks/tables.py    # updates the pages between their marks; a test checks that this changes nothing

A table is between `<!-- table: NAME -->` and `<!-- end -->`; the text around it is written by hand.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measured_stage import BARE

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/benchmarks.md"
README = HERE.parent / "README.md"
MARK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Result = dict[str, Any]
Lines = list[str]
KINDS = ("exact_match", "contains")  # scorers of bench_real.py


def newest(name: str, folder: Path) -> Path | None:
    """Return the result of that name with the latest date, or None."""
    dated = re.compile(re.escape(name) + r"-\d{4}-\d\d-\d\d\.json")
    return max((path for path in folder.glob("*.json") if dated.fullmatch(path.name)), default=None)


def make_tables(folder: Path = HERE / "results") -> dict[str, str]:
    """Return all tables for the results in a folder, by name."""
    made = {}
    for table, (name, build) in TABLES.items():
        if path := newest(name, folder):
            result = json.loads(path.read_text(encoding="utf-8"))
            made[table] = "\n".join([*build(result), "", about(result, path.name), ""])
    return made


def write_page() -> None:
    """Insert the tables into the pages."""
    for page in (PAGE, README):
        page.write_text(page_with(page.read_text(encoding="utf-8"), tables_for(page)), encoding="utf-8")


def tables_for(page: Path) -> dict[str, str]:
    """Return all tables, with links that are correct on this page."""
    top = "../" * len(page.relative_to(HERE.parent).parent.parts)
    return {name: table.replace("](../benchmarks/", f"]({top}benchmarks/") for name, table in make_tables().items()}


def page_with(page: str, tables: dict[str, str]) -> str:
    """Return the page with updated tables; one without a result is unchanged."""
    return MARK.sub(lambda found: f"{found[1]}{tables[found[2]]}{found[3]}" if found[2] in tables else found[0], page)


def about(result: Result, name: str) -> str:
    """Describe the source of a table."""
    machine = result["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB"
    rounds = rounds_of(result)
    count = f"; {rounds} rounds" if rounds else ""
    return f"({result['date']}, {where}{count}; [raw](../benchmarks/results/{name}).)"


def rounds_of(content: Any) -> int | None:
    """Return the number of rounds: a count in the result, or the length of its lists of ratios."""
    if not isinstance(content, dict | list):
        return None
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if key in ("rounds", "ratios", "decide_seconds"):
            return value if isinstance(value, int) else len(value)
        if (found := rounds_of(value)) is not None:
            return found
    return None


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """Format a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Format median and range."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def gigabytes(count: float) -> str:
    """Format bytes as GB."""
    return f"{count / 1e9:.2f} GB"


def seconds(count: float) -> str:
    """Format seconds with the significant digits."""
    return f"{count:.1f} s" if count < 100 else f"{count:,.0f} s"


def prepare_table(result: Result) -> Lines:
    """Return times and memory by size."""
    rows = []
    for size in result["sizes"]:
        plain = size["plain"]
        both = [cell for side in (size["ours"], plain) for cell in costs(side)]
        rows.append([f"{size['rows']:,}", f"{size['bytes'] / 1e6:,.0f} MB", *both, f"{size['times_faster']:.1f}"])
    return grid(["rows", "bytes", "ours", "memory", "plain script", "memory", "times faster"], rows)


def costs(side: Result) -> list[str]:
    """Format time and memory of one process tree."""
    return [seconds(side["wall_seconds"]), gigabytes(side["peak_memory_bytes"])]


def near_table(result: Result) -> Lines:
    """Return the table of near-duplicates compared with brute force."""
    found = result["near_duplicates"]
    rows = [
        [
            name,
            f"{found[side]['near_duplicates_dropped']:,}",
            share(found[side]["recall"]),
            share(found[side]["precision"]),
        ]
        for side, name in (("ours", "ours"), ("plain", "plain script"))
    ]
    about_rows = f"{found['after_exact']:,} rows, {found['pairs_at_threshold']:,} pairs of them at or above 0.8"
    return grid([about_rows, "dropped", "recall", "precision"], rows)


def share(value: float | None) -> str:
    """Format a share, which may be undefined."""
    return "-" if value is None else f"{value:.1%}"


def engines_table(result: Result) -> Lines:
    """Return the table of engines, with their handling of bad rows."""
    rows = []
    for name, runs in result["runs"].items():
        bad = result["bad_rows"][name]
        what = f"keeps {bad['rows_kept']}, names every line" if bad["exit_code"] == 0 else f"stops: {bad['said'][:60]}"
        middle = {key: median(run[key] for run in runs) for key in ("wall_seconds", "peak_memory_bytes")}
        rows.append([name, *costs(middle), f"{runs[0]['kept']:,}", what.replace("|", "/")])
    return grid([f"engine, {result['rows']:,} rows", "seconds", "memory", "kept", "three bad rows of five"], rows)


def train_table(result: Result) -> Lines:
    """Return the sides on unpacked rows, the slowest first."""
    rows = [
        [
            f"**{side['side']}**" if side["side"] == "ours" else side["side"],
            spread(side["tokens_per_second"], ".0f"),
            spread(side["faster"]),
            f"{side['step_seconds']:.1f} s",
            f"{side['process_seconds']:.1f} s",
            gigabytes(side["peak_memory_bytes"]),
            f"{side['train_loss']:.3f}",
            spread(side["validation_losses"], ".3f"),
            f"{side['steps']}, {side['supervised_tokens']:,}",
        ]
        for side in sorted(result["workloads"]["short"]["table"], key=lambda side: float(median(side["faster"])))
    ]
    heads = ["side", "tokens/s", "times faster", "seconds in steps", "in all", "memory", "training loss"]
    return grid([*heads, "validation loss", "steps, tokens"], rows)


def overhead_table(result: Result) -> Lines:
    """Return the parts of the stage other than training, if above a thousandth."""
    parts = [(name, spent) for name, spent in result["parts"].items() if name not in (*BARE, "validation")]
    whole = result["stage_seconds"]
    rows = [[name, f"{spent:.2f} s", f"{spent / whole:.2%}"] for name, spent in parts if spent > whole / 1000]
    rest = sum(spent for _, spent in parts if spent <= whole / 1000)
    rows += [["the rest", f"{rest:.2f} s", f"{rest / whole:.2%}"]]
    rows += [
        [f"**together**, of {whole:.0f} s", f"{result['overhead_seconds']:.2f} s", f"{result['overhead_share']:.2%}"]
    ]
    return grid(["part", "seconds", "share"], rows)


def evaluate_table(result: Result) -> Lines:
    """Return batches compared with one prompt at a time."""
    rows = []
    for name, side in result["sides"].items():
        ways = [f"{median(side['seconds'][way]):.2f} s" for way in ("batched", "one by one")]
        rows.append([name, *ways, spread(side["ratios"], ".1f"), f"{side['same_answers']:.0%}"])
    heads = [f"{result['examples']} answers", "batched", "one by one", "times faster", "same answers"]
    return grid(heads, rows)


def harness_table(result: Result) -> Lines:
    """Return this package compared with the lm-evaluation-harness."""
    rows = []
    for name, side in result["sides"].items():
        ways = [f"{median(taken):.2f} s" for taken in side["seconds"].values()]
        rows.append(
            [name, *ways, spread(side["ratios"], ".1f"), *(f"{right:.1%}" for right in side["exact_match"].values())]
        )
    heads = [f"{result['examples']} answers", "ours", "harness", "times faster", "exact match, ours", "harness"]
    return grid(heads, rows)


def start_table(result: Result) -> Lines:
    """Return the seconds of each command."""
    return grid(["command", "seconds"], [[name, spread(taken)] for name, taken in result["seconds"].items()])


def memory_table(result: Result) -> Lines:
    """Return predicted and measured peaks, with misses in bold."""
    rows = []
    for case in result["configurations"]:
        error = case["error_percent"]
        told = f"**{error:+.1f}%**" if abs(error) > 10 else f"{error:+.1f}%"
        peaks = [f"{case[side]['peak'] / 2**30:.2f}" for side in ("predicted", "measured")]
        rows.append([case["case"], f"{case['batch']} x {case['length']}", *peaks, told])
    return grid(["configuration", "rows x tokens", "predicted, GiB", "measured, GiB", "error"], rows)


def gate_table(result: Result) -> Lines:
    """Return the error rate and the power of each rule."""
    rows = [
        [
            row["rule"],
            row["size"],
            row["truth"],
            f"{row['wrong']:.1%}" + (f" ± {row['error']:.1%}" if row["error"] else ""),
            row["better"],
            f"{row['power']:.0%}",
        ]
        for row in result["rows"]
    ]
    return grid(["rule", "size", "truth", "passes wrongly", "truth", "passes"], rows)


def real_table(result: Result) -> Lines:
    """Return the right answers of base, prompted base and fine-tuned model, and the cost of the training."""
    same, labelled = result["same_prompt"], result["labels_in_prompt"]
    named = {"base": same["baseline"], "base, labels in its prompt": labelled["baseline"]}
    rows = [
        [name, *(with_interval(side["right"][kind]) for kind in KINDS), f"{side['seconds_per_answer']:.2f} s"]
        for name, side in (named | {"**fine-tuned**": same["candidate"]}).items()
    ]
    heads = [f"{same['examples']} questions", "exactly the label", "contains the label", "time per answer"]
    return [*grid(heads, rows), "", training_cost(result["training"])]


def with_interval(found: Result) -> str:
    """Format a share with its 95% interval."""
    return f"{found['share']:.1%} ({found['lower']:.1%} to {found['upper']:.1%})"


def training_cost(found: Result) -> str:
    """Describe a training by its size, time and memory, and its validation loss."""
    least, most = (f"{found['predicted_seconds'][end] / 60:.0f}" for end in ("least", "most"))
    minutes = f"{found['wall_seconds'] / 60:.0f} minutes (predicted: {least} to {most})"
    size = f"{found['examples']:,} examples, {found['steps']} steps, {minutes}"
    peak, predicted = (gigabytes(found[key]) for key in ("peak_memory_bytes", "predicted_peak_bytes"))
    losses = f"validation loss {found['first_validation_loss']:.2f} before and {found['validation_loss']:.2f} after"
    return f"Training: {size}, peak memory {peak} (predicted: {predicted}), {losses}."


def containers_table(result: Result) -> Lines:
    """Return a stage natively and in its container, and the image."""
    pairs = result["decide_seconds"]
    engine = next(name for name in pairs[0] if name != "native")
    rows = [
        ["`decide`, natively", spread([pair["native"] for pair in pairs]) + " s"],
        ["`decide`, in its container", spread([pair[engine] for pair in pairs]) + " s"],
        ["difference within a round", spread([pair[engine] - pair["native"] for pair in pairs]) + " s"],
        ["CPU image", gigabytes(result["image_bytes"])],
    ]
    for what, name in (("cold_seconds", "from nothing"), ("after_a_change_seconds", "after a change of the source")):
        if "builds" in result:
            rows.append([f"CPU image, built {name}", f"{result['builds'][what]:.0f} s"])
    return grid([result["engine"], ""], rows)


TABLES: dict[str, tuple[str, Callable[[Result], Lines]]] = {
    "prepare": ("prepare", prepare_table),
    "near-duplicates": ("prepare", near_table),
    "engines": ("prepare-engines", engines_table),
    "train": ("train", train_table),
    "overhead": ("overhead", overhead_table),
    "evaluate": ("evaluate", evaluate_table),
    "harness": ("lm-eval", harness_table),
    "start": ("start", start_table),
    "memory": ("memory", memory_table),
    "gate": ("gate", gate_table),
    "containers": ("containers", containers_table),
    "real": ("real", real_table),
}


def marked(page: str) -> Iterator[str]:
    """Yield the tables that a page contains."""
    return (found[2] for found in MARK.finditer(page))


if __name__ == "__main__":
    write_page()
