"""Train a model for each privacy budget, and one without privacy, and set the results beside the paper's.

python scripts/sweep.py               the paper's six budgets and the non-private model
python scripts/sweep.py --eps 0.29    one budget (or several; inf is the non-private model)
python scripts/sweep.py --recipe recommended    each budget by the rule of configs/recommended.yaml
(docs/recipes.md) python scripts/sweep.py --recipe recommended --beside runs/sweep-demo    another sweep in
the same figure

Budgets that are finished in the sweep folder are not run again; one that was interrupted goes on where it
stopped. Every field of the configuration is a flag as well, such as --training.steps 60; it then holds for
every budget.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import tyro

from jaxcxr.cli.console import run
from jaxcxr.config import PAPER_BUDGETS, Experiment, load, override
from jaxcxr.errors import InputError
from jaxcxr.workflows.recipes import Rule, recommended, with_views


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which budgets, of what, and where.

    Attributes:
        eps: budgets; the paper's six and inf (no privacy) unless given.
        config: the private experiment; its privacy.epsilon is replaced by each budget.
        nonprivate_config: the non-private experiment.
        recipe: `paper` trains as the configuration says; `recommended` chooses batch, steps, rate, scope,
            clip norm and averaging for each budget by the rule, for no more film passes, and averages all
            predictions over views of a film.
        rule: of the recommended recipe (YAML).
        beside: a finished sweep folder, drawn in the same figure.
        out: sweep folder; runs/sweep-<name of the configuration> unless given, with the recipe's name if it
            is not the paper's.
    """

    eps: tuple[float, ...] = (*PAPER_BUDGETS, math.inf)
    config: Path = Path("configs/demo.yaml")
    nonprivate_config: Path = Path("configs/demo_nonprivate.yaml")
    recipe: Literal["paper", "recommended"] = "paper"
    rule: Path = Path("configs/recommended.yaml")
    beside: Path | None = None
    out: Path | None = None


def main() -> None:
    arguments, overrides = tyro.cli(Arguments, description=__doc__, return_unknown_args=True)
    private = load(Experiment, arguments.config)
    if private.privacy is None:
        raise InputError(f"{arguments.config}: privacy: expected a budget to sweep over, found null")
    if arguments.beside is not None and not (arguments.beside / "summary.csv").is_file():
        raise InputError(
            f"--beside {arguments.beside}: expected a finished sweep folder, found no summary.csv there"
        )
    rule = load(Rule, arguments.rule) if arguments.recipe == "recommended" else None
    experiments: dict[float, Experiment] = {}
    for epsilon in arguments.eps:
        if not epsilon > 0:
            raise InputError(f"--eps: expected positive budgets, found {epsilon:g}")
        config = load(Experiment, arguments.nonprivate_config)
        if epsilon < math.inf:
            config = dataclasses.replace(
                private, privacy=dataclasses.replace(private.privacy, epsilon=epsilon)
            )
        elif config.privacy is not None or (config.data.store, config.data.findings) != (
            private.data.store,
            private.data.findings,
        ):
            raise InputError(
                f"{arguments.nonprivate_config}: expected privacy null and the data of {arguments.config}; "
                "name the matching --nonprivate-config, or leave inf out of --eps"
            )
        config = override(config, overrides, prog="sweep.py --config FILE")
        if rule is not None:
            from jaxcxr.workflows.experiment import number_of_units

            config = (
                with_views(config, rule)
                if config.privacy is None
                else recommended(config, number_of_units(config), rule)
            )
        experiments[epsilon] = config
    name = f"sweep-{arguments.config.stem}" + (f"-{arguments.recipe}" if arguments.recipe != "paper" else "")
    sweep(experiments, arguments.out or Path("runs") / name, arguments.beside)


def sweep(experiments: dict[float, Experiment], out: Path, beside: Path | None = None) -> None:
    """Run the experiments, one folder a budget, and write the summary, tables and figures over all that the
    sweep folder holds.
    """
    from jaxcxr.data.store import open_store
    from jaxcxr.report.evaluated_runs import finished_runs
    from jaxcxr.report.figures.sweep_figures import figure_2
    from jaxcxr.report.paper.supplementary_tables import summarise, write_tables
    from jaxcxr.report.screen import sweep_text
    from jaxcxr.report.sweep_privacy import write_cost
    from jaxcxr.report.sweep_report import write_sweep
    from jaxcxr.run_folder import CONFIG, SUMMARY, UNTOUCHED, budget_name
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.workflows.experiment import evaluate_untouched, run_experiment

    keep_memory()
    first = next(iter(experiments.values()))
    untouched = None if first.model.weights is None else evaluate_untouched(first, out / UNTOUCHED)
    for epsilon, config in experiments.items():
        run = out / budget_name(epsilon)
        if run_experiment(config, run, resume=(run / CONFIG).exists(), beside=False) is None:
            raise SystemExit(130)
    runs = finished_runs(out)
    summary = summarise(runs)
    summary.to_csv(out / SUMMARY, index=False)
    write_tables(summary, out / "tables")
    other = None if beside is None else (beside.resolve().name, summarise(finished_runs(beside)))
    figure_2(summary, out, beside=other)
    folders = {run.epsilon: out / budget_name(run.epsilon) for run in runs}
    films = open_store(Path(first.data.store)).manifest
    write_sweep(out, runs, folders, first.evaluation, films, first.data.findings)
    print(f"\n{sweep_text(summary, untouched)}\n")
    if any(math.isfinite(run.epsilon) for run in runs):
        print(f"{write_cost(out)}\n")
    print(
        f"{out}: report.html, summary.csv, privacy.json, evaluations.csv, comparisons.csv, correlations.csv, "
        "figure_2.png, "
        "figure_2.svg, tables/, figures/, and a run folder for each budget"
    )


if __name__ == "__main__":
    run(main, repeatable=True)
