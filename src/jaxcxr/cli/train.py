"""Train one model by a configuration, then predict and evaluate its held-out images.

Examples:
  jaxcxr train --config configs/demo.yaml --out runs/demo
  jaxcxr train --config configs/demo.yaml --dry-run
  jaxcxr train --config configs/demo.yaml --recipe head --out runs/demo-head
  jaxcxr train --config configs/demo.yaml --privacy.epsilon 1.06 --out runs/demo-1.06

Every field of the configuration is a flag as well, such as --privacy.epsilon; --help-config lists them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxcxr.cli.console import say
from jaxcxr.cli.experiment_flags import Recipe, experiment_of, parse
from jaxcxr.config import Experiment
from jaxcxr.config_files import load
from jaxcxr.run_folder import CHECKPOINTS


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and where.

    Attributes:
        config: the experiment (YAML).
        recipe: `paper` trains as the configuration says; `recommended` chooses by the rule between the head
            alone and the whole network, and how; `head` trains the head alone, on features that are computed
            once.
        rule: of the recommended recipe and the head's (YAML).
        out: run folder; runs/<name of the configuration> unless given, with the recipe's name if it is not
            the paper's.
        resume: go on with the run in that folder from its newest checkpoint.
        delete_secret: when the run is finished, delete the secret behind its noise: nobody can subtract the
            noise then, and the run cannot go on. With resume also for a run that is finished already.
        dry_run: train nothing; say what would be trained on whom, what it costs in privacy, memory and time,
            and what is odd about it.
        help_config: list every field of the configuration and stop.
    """

    config: Path = Path("configs/demo.yaml")
    recipe: Recipe = "paper"
    rule: Path = Path("configs/recommended.yaml")
    out: Path | None = None
    resume: bool = False
    delete_secret: bool = False
    dry_run: bool = False
    help_config: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, flags = parse(Arguments, __doc__, argv)
    config = experiment_of(arguments.config, flags, "jaxcxr train --config FILE")
    name = arguments.config.stem + (f"-{arguments.recipe}" if arguments.recipe != "paper" else "")
    out = arguments.out or Path("runs") / name
    say(f"{arguments.config}: loading JAX")
    config, chosen = _by_the_rule(config, arguments)
    if arguments.dry_run:
        from jaxcxr.workflows.rehearsal import rehearse

        print("\n".join(rehearse(config, say).lines()))
        return
    _train(config, out, arguments, chosen)


def _by_the_rule(config: Experiment, arguments: Arguments) -> tuple[Experiment, list[str]]:
    """The experiment by the recipe, and what it chose and why."""
    if arguments.recipe == "paper":
        return config, []
    from jaxcxr.workflows.experiment import number_of_units
    from jaxcxr.workflows.recipes import Rule, by_recipe

    chosen, told = by_recipe(arguments.recipe, config, number_of_units(config), load(Rule, arguments.rule))
    for sentence in told:
        say(sentence)
    return chosen, told


def _train(config: Experiment, out: Path, arguments: Arguments, chosen: Sequence[str]) -> None:
    from jaxcxr.report.screen import screen_table, start_text, strata_text, validation_text
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.training.distributed import connect, is_process_0
    from jaxcxr.workflows.experiment import run_experiment

    keep_memory()
    connect()
    evaluation = run_experiment(config, out, arguments.resume, judge_start=True, chosen=chosen)
    if evaluation is None or not is_process_0():
        return
    if arguments.delete_secret:
        from jaxcxr.training.secret import delete_secret

        delete_secret(out / CHECKPOINTS)
        print(f"{out}: the secret is deleted; backups and snapshots of the folder may still have it\n")
    print(screen_table(evaluation))
    for said in (validation_text, strata_text, start_text):
        if text := said(evaluation):
            print(f"\n{text}")
    print(
        f"\n{out}: config.yaml, run.json, ledger.jsonl, metrics.jsonl, TensorBoard events, checkpoints, "
        "predictions.parquet, evaluation.csv, calibration.json, figures/, report.html"
    )
