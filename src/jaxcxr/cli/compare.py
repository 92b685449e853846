"""Compare two models on the same test images: paired differences with intervals and p-values, group by group.

Examples:
  jaxcxr compare runs/sweep-demo/non_private runs/sweep-demo/epsilon_7.89 --out runs/sweep-demo/comparison
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcxr.cli.console import say
from jaxcxr.config import EvaluationConfig


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare two models on the same test images: paired differences (A minus B) with intervals and p-values,
    group by group.

    Attributes:
        run_a, run_b: run folders, or predictions files (.parquet or .csv) of any models.
        out: folder for comparison.csv and report.html.
        evaluation: how the predictions are judged.
    """

    run_a: tyro.conf.Positional[Path]
    run_b: tyro.conf.Positional[Path]
    out: Path
    evaluation: tyro.conf.OmitArgPrefixes[EvaluationConfig] = dataclasses.field(
        default_factory=EvaluationConfig
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    say(
        f"comparing {arguments.run_a} with {arguments.run_b}: "
        f"{arguments.evaluation.redraws} bootstrap replicates"
    )
    from jaxcxr.eval.compare import compare, read_pair
    from jaxcxr.report.page.run_page import comparison_page, write_page
    from jaxcxr.report.run_facts import read_facts
    from jaxcxr.report.screen import comparison_text

    a, b, findings = read_pair(arguments.run_a, arguments.run_b)
    comparison = compare(a, b, findings, arguments.evaluation)
    arguments.out.mkdir(parents=True, exist_ok=True)
    comparison.to_csv(arguments.out / "comparison.csv", index=False)
    facts = (read_facts(arguments.run_a), read_facts(arguments.run_b))
    write_page(
        comparison_page(comparison, (str(arguments.run_a), str(arguments.run_b)), facts), arguments.out
    )
    print(f"A {arguments.run_a}\nB {arguments.run_b}\n")
    print(comparison_text(comparison))
    print(f"\n{arguments.out}: comparison.csv ({len(comparison)} rows), report.html")
