"""Who is exposed by a model, and who pays for privacy: patient by patient and group by group.

Examples:
  jaxcxr risk runs/sweep-demo             every model of a sweep, with the price beside the exposure
  jaxcxr risk runs/demo                   the model of one run
  jaxcxr risk runs/sweep-demo --models 64 fewer reference models, wider intervals
  jaxcxr risk runs/sweep-demo --launcher local -j 2    two models side by side

Attacks the models of a finished run or sweep (LiRA, RMIA), and many cheap models that show each training
patient's risk without privacy and with each budget. Writes risk/ into the folder, and for a sweep the section
'Privacy and fairness in one picture' of report.html. A call that was interrupted goes on. All of it is
computed from patients without noise and stays in the hospital.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from jaxcxr.cli.console import say
from jaxcxr.cli.launching import Launch, as_part, launch, part_of
from jaxcxr.run_folder import JOBS


@dataclasses.dataclass(frozen=True)
class Arguments(Launch):
    """Which models, and how thoroughly.

    Attributes:
        run: folder of a finished run or sweep.
        models: number of reference models, each trained on a random half of the patients.
        store: folder of the store, if it is not where the run's configuration says.
        seed: of halves, simulated noise and bootstrap.
    """

    run: tyro.conf.Positional[Path]
    models: int = 128
    store: Path | None = None
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argv, part = part_of(argv)
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    arguments.check()
    say(f"{arguments.run}: loading JAX")
    from jaxcxr.report.risk_files import RISK, STAYS
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.workflows.risk import Asked, parts, run_part
    from jaxcxr.workflows.risk_report import assess_and_report

    keep_memory()
    asked = Asked(arguments.models, arguments.seed)
    if part is not None:
        with as_part():
            run_part(arguments.run, part, asked, arguments.store, say)
        return
    if arguments.launcher != "none":
        named = parts(arguments.run)
        launch(arguments, ["risk", *argv], named, arguments.run / RISK / JOBS)
    sentences, written = assess_and_report(
        arguments.run, models=arguments.models, seed=arguments.seed, store=arguments.store, say=say
    )
    print("\n".join(f"- {sentence}" for sentence in sentences))
    print(f"{', '.join(map(str, written))}: {STAYS}")
