"""Run a study from one YAML grid, and say what each variation is worth.

Examples:
  jaxcxr ablate                             every question of configs/ablations.yaml
  jaxcxr ablate --questions recipe          one of them
  jaxcxr ablate --minutes 30                begin no run after half an hour; the same command goes on later
  jaxcxr ablate --launcher local -j 2       two runs side by side
  jaxcxr ablate --launcher slurm --slurm partition=gpu gpus_per_node=1    an array of SLURM jobs

Finished runs are not run again. Tables and figures over all that is finished go to --report: results.csv (one
row per run), comparisons.csv (one row per arm, with intervals), ablations.md, ablations.png/.svg and
budgets.png/.svg. Questions that are not asked for, or have no finished run, keep the rows that the report has
of them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from jaxcxr.cli.console import say
from jaxcxr.cli.launching import Launch, as_part, launch, part_of
from jaxcxr.config_files import load
from jaxcxr.errors import InputError
from jaxcxr.run_folder import JOBS

if TYPE_CHECKING:
    from jaxcxr.workflows.study import Study


@dataclasses.dataclass(frozen=True)
class Arguments(Launch):
    """What to run, and where.

    Attributes:
        grid: the study (YAML).
        out: folder of the runs.
        report: folder of tables and figures.
        questions: those to run; all of the grid unless given.
        minutes: begin no run after so many.
    """

    grid: Path = Path("configs/ablations.yaml")
    out: Path = Path("runs/ablations")
    report: Path = Path("docs/ablations")
    questions: tuple[str, ...] = ()
    minutes: float | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argv, part = part_of(argv)
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    arguments.check()
    say(f"{arguments.grid}: loading JAX")
    from jaxcxr.report.figures.study_figures import with_other_questions, write_study
    from jaxcxr.training.cpu_allocator import keep_memory
    from jaxcxr.workflows import study as studies

    keep_memory()
    study = load(studies.Study, arguments.grid)
    unknown = [name for name in arguments.questions if name not in study.questions]
    if unknown:
        raise InputError(
            f"--questions: expected some of {', '.join(study.questions)}; found {', '.join(unknown)}"
        )
    everything = study.questions
    chosen = {
        name: q for name, q in everything.items() if not arguments.questions or name in arguments.questions
    }
    study = dataclasses.replace(study, questions=chosen)
    if part is not None:
        with as_part():
            studies.run_cell(studies.cell_of(study, part), arguments.out)
        return
    if arguments.launcher == "none":
        done = studies.run(study, arguments.out, arguments.minutes)
    else:
        done = _run_side_by_side(study, arguments, argv)
    compared = studies.comparisons(study, arguments.out)
    if compared.empty:
        raise InputError(
            f"{arguments.out}: no finished run of {', '.join(chosen)} there yet; expected time for one"
        )
    asked = {name: question.asks for name, question in everything.items()}
    compared = with_other_questions(compared, arguments.report / "comparisons.csv", list(asked))
    results = with_other_questions(
        studies.results(study, arguments.out), arguments.report / "results.csv", list(asked)
    )
    write_study(results, compared, asked, arguments.report)
    print(f"{arguments.report}: results.csv, comparisons.csv, ablations.md, ablations.png, ablations.svg")
    if not done:
        print("the study is not finished: the same command goes on")


def _run_side_by_side(study: "Study", arguments: Arguments, argv: Sequence[str]) -> bool:
    """Run what is not there yet by a launcher; whether nothing is left."""
    from jaxcxr.workflows.study import unfinished

    todo = unfinished(study, arguments.out)
    for digest, cell in todo.items():
        say(f"{digest}: {cell.title}")
    launch(arguments, ["ablate", *argv], list(todo), arguments.out / JOBS, arguments.minutes)
    return not unfinished(study, arguments.out)
