"""Train one model by a configuration, then predict and evaluate its held-out films.

python scripts/train.py --config configs/demo.yaml --out runs/demo

Every field of the configuration is a flag as well, such as --privacy.epsilon 1.06 or --training.steps 60.
"""

import dataclasses
from pathlib import Path

import tyro

from jaxcxr.cli.console import run
from jaxcxr.config import Experiment, load, override


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to train, and where.

    Attributes:
        config: the experiment (YAML).
        out: run folder; runs/<name of the configuration> unless given.
        resume: go on with the run in that folder from its newest checkpoint.
        delete_secret: when the run is finished, delete the secret behind its noise: nobody can subtract the
            noise then, and the run cannot go on. With resume also for a run that is finished already.
    """

    config: Path = Path("configs/demo.yaml")
    out: Path | None = None
    resume: bool = False
    delete_secret: bool = False


def main() -> None:
    arguments, overrides = tyro.cli(Arguments, description=__doc__, return_unknown_args=True)
    config = override(load(Experiment, arguments.config), overrides, prog="train.py --config FILE")
    from jaxcxr.report.paper.supplementary_tables import screen_table
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.training.distributed import connect, is_process_0
    from jaxcxr.workflows.experiment import run_experiment

    keep_memory()
    connect()
    out = arguments.out or Path("runs") / arguments.config.stem
    evaluation = run_experiment(config, out, arguments.resume)
    if not is_process_0():
        return
    if evaluation is None:
        raise SystemExit(130)
    if arguments.delete_secret:
        from jaxcxr.training.secret import delete_secret

        delete_secret(out / "checkpoints")
        print(f"{out}: the secret is deleted; backups and snapshots of the folder may still have it\n")
    print(screen_table(evaluation))
    print(
        f"\n{out}: config.yaml, run.json, ledger.jsonl, metrics.jsonl, TensorBoard events, checkpoints, "
        "predictions.parquet, evaluation.csv, figures/, report.html"
    )


if __name__ == "__main__":
    run(main, repeatable=True)
