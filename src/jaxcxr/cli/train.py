"""Train one model by a configuration, then predict and evaluate its held-out images.

Examples:
  jaxcxr train --config configs/demo.yaml --out runs/demo
  jaxcxr train --config configs/demo.yaml --dry-run
  jaxcxr train --config configs/demo.yaml --privacy.epsilon 1.06 --out runs/demo-1.06

Every field of the configuration is a flag as well, such as --privacy.epsilon; --help-config lists them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxcxr.cli.console import say
from jaxcxr.cli.experiment_flags import experiment_of, parse
from jaxcxr.config import Experiment
from jaxcxr.run_folder import CHECKPOINTS


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and where.

    Attributes:
        config: the experiment (YAML).
        out: run folder; runs/<name of the configuration> unless given.
        resume: go on with the run in that folder from its newest checkpoint.
        delete_secret: when the run is finished, delete the secret behind its noise: nobody can subtract the
            noise then, and the run cannot go on. With resume also for a run that is finished already.
        dry_run: train nothing; say what would be trained on whom, what it costs in privacy, memory and time,
            and what is odd about it.
        help_config: list every field of the configuration and stop.
    """

    config: Path = Path("configs/demo.yaml")
    out: Path | None = None
    resume: bool = False
    delete_secret: bool = False
    dry_run: bool = False
    help_config: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, flags = parse(Arguments, __doc__, argv)
    config = experiment_of(arguments.config, flags, "jaxcxr train --config FILE")
    out = arguments.out or Path("runs") / arguments.config.stem
    say(f"{arguments.config}: loading JAX")
    if arguments.dry_run:
        from jaxcxr.workflows.rehearsal import rehearse

        print("\n".join(rehearse(config, say).lines()))
        return
    _train(config, out, arguments)


def _train(config: Experiment, out: Path, arguments: Arguments) -> None:
    from jaxcxr.report.paper.supplementary_tables import screen_table
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.training.distributed import connect, is_process_0
    from jaxcxr.workflows.experiment import run_experiment

    keep_memory()
    connect()
    evaluation = run_experiment(config, out, arguments.resume)
    if not is_process_0():
        return
    if evaluation is None:
        raise SystemExit(130)
    if arguments.delete_secret:
        from jaxcxr.training.secret import delete_secret

        delete_secret(out / CHECKPOINTS)
        print(f"{out}: the secret is deleted; backups and snapshots of the folder may still have it\n")
    print(screen_table(evaluation))
    print(
        f"\n{out}: config.yaml, run.json, ledger.jsonl, metrics.jsonl, TensorBoard events, checkpoints, "
        "predictions.parquet, evaluation.csv, calibration.json, figures/, report.html"
    )
