"""Train a model for each privacy budget, and one without privacy, and set the results beside the paper's.

Examples:
  jaxcxr sweep                            the demo: the paper's six budgets and the non-private model
  jaxcxr sweep --eps 0.29                 one budget (or several; inf is the non-private model)
  jaxcxr sweep --eps 0.29 --dry-run       what that would train, and what it would cost
  jaxcxr sweep --recipe paper             the demo by the paper's recipe: the whole network at every budget
  jaxcxr sweep --config my.yaml --recipe recommended    each budget by the rule of configs/recommended.yaml
  jaxcxr sweep --recipe head              the head alone, on features that are computed once: seconds a budget
  jaxcxr sweep --recipe paper --beside runs/sweep-demo    another sweep in the same figure
  jaxcxr sweep --launcher local -j 2      two budgets side by side
  jaxcxr sweep --launcher slurm --slurm partition=gpu gpus_per_node=1    an array of SLURM jobs
  jaxcxr sweep --tune configs/tuning.yaml --budget 2.04     one model whose epsilon includes the choice of its
                                          settings: a random number of runs, of which the best is kept

Budgets that are finished in the sweep folder are not run again; one that was interrupted goes on where it
stopped. Several launchers may share a sweep folder: each budget is trained once. Every field of the
configuration is a flag as well, such as --training.steps 60; it then holds for every budget. --help-config
lists the fields.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxcxr.cli.console import say
from jaxcxr.cli.experiment_flags import Recipe, experiment_of, parse
from jaxcxr.cli.launching import Launch, as_part, launch, part_of
from jaxcxr.config import PAPER_BUDGETS, Experiment
from jaxcxr.config_files import load, override
from jaxcxr.errors import InputError
from jaxcxr.run_folder import JOBS, SUMMARY

DEMO = Path("configs/demo.yaml")
PROGRAM = "jaxcxr sweep --config FILE"


@dataclasses.dataclass(frozen=True)
class Arguments(Launch):
    """Which budgets, of what, and where.

    Attributes:
        eps: budgets; the paper's six and inf (no privacy) unless given.
        config: the private experiment; its privacy.epsilon is replaced by each budget.
        nonprivate_config: the non-private experiment.
        recipe: `paper` trains as the configuration says; `recommended` chooses for each budget by the rule
            between the head alone and the whole network, and batch, steps, rate, clip norm and averaging,
            and averages all predictions over views of an image; `head` trains the head alone, also without
            privacy. Unless given, `recommended` for the demo (configs/demo.yaml), and `paper` for any other
            configuration.
        rule: of the recommended recipe and the head's (YAML).
        beside: a finished sweep folder, drawn in the same figure.
        out: sweep folder; runs/sweep-<name of the configuration> unless given, with the recipe's name if it
            is not the one that is taken unless given; of a tuning
            runs/tune-<name of the grid>-epsilon_<budget>.
        tune: grid of settings to draw from (YAML); trains one model for --budget in place of a sweep.
        budget: with tune: epsilon of that model, choice included.
        dry_run: train nothing; say of each budget what would be trained on whom, what it costs in privacy,
            memory and time, and what is odd about it.
        help_config: list every field of the configuration and stop.
    """

    eps: tuple[float, ...] = (*PAPER_BUDGETS, math.inf)
    config: Path = DEMO
    nonprivate_config: Path = Path("configs/demo_nonprivate.yaml")
    recipe: Recipe | None = None
    rule: Path = Path("configs/recommended.yaml")
    beside: Path | None = None
    out: Path | None = None
    tune: Path | None = None
    budget: float | None = None
    dry_run: bool = False
    help_config: bool = False

    @property
    def usual(self) -> Recipe:
        """The recipe unless one is given."""
        return "recommended" if self.config == DEMO else "paper"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argv, part = part_of(argv)
    arguments, flags = parse(Arguments, __doc__, argv)
    arguments.check()
    if arguments.tune is not None or arguments.budget is not None:
        _tune(arguments, flags)
        return
    recipe = arguments.recipe or arguments.usual
    if arguments.beside is not None and not (arguments.beside / SUMMARY).is_file():
        raise InputError(
            f"--beside {arguments.beside}: expected a finished sweep folder, found no summary.csv there"
        )
    experiments = _experiments(arguments, flags, recipe)
    say(f"{arguments.config}: loading JAX")
    chosen, told = _by_the_rule(experiments, recipe, arguments, flags)
    if arguments.dry_run:
        _rehearse(chosen)
        return
    from jaxcxr.workflows import sweep as sweeps

    name = f"sweep-{arguments.config.stem}" + (f"-{recipe}" if recipe != arguments.usual else "")
    out = arguments.out or Path("runs") / name
    if part is not None:
        with as_part():
            sweeps.run_part(chosen, out, part, told)
    elif arguments.launcher == "none":
        sweeps.sweep(chosen, out, arguments.beside, told)
    else:
        launch(arguments, ["sweep", *argv], sweeps.parts(chosen), out / JOBS)
        sweeps.report(chosen, out, arguments.beside)


def _tune(arguments: Arguments, flags: Sequence[str]) -> None:
    """One model within a budget that pays for the choice of its settings, too."""
    if arguments.tune is None or arguments.budget is None:
        raise InputError("--tune GRID.yaml and --budget EPSILON go together: expected both")
    others = arguments.recipe, arguments.beside, arguments.launcher, arguments.eps
    if others != (None, None, "none", Arguments.eps):
        raise InputError(
            "--tune draws the settings from its grid for one --budget: expected none of --eps, --recipe, "
            "--beside and --launcher"
        )
    base = experiment_of(arguments.config, flags, PROGRAM)
    say(f"{arguments.config}: loading JAX")
    from jaxcxr.workflows.tuning import Grid, rehearse_tuning, tune

    grid = load(Grid, arguments.tune)
    try:
        if arguments.dry_run:
            for line in rehearse_tuning(base, grid, arguments.budget, say):
                print(line, flush=True)
            return
        out = arguments.out or Path("runs") / f"tune-{arguments.tune.stem}-epsilon_{arguments.budget:g}"
        tune(base, grid, arguments.budget, out)
    except InputError as error:
        said = str(error)
        raise InputError(f"{arguments.tune}: {said}" if said.startswith("vary:") else said) from error


def _experiments(arguments: Arguments, flags: Sequence[str], recipe: Recipe) -> dict[float, Experiment]:
    """The experiment of each budget, as the configurations and flags say.

    Raises:
        InputError: a budget is not positive, or the two configurations do not go together.
    """
    private = load(Experiment, arguments.config)
    if private.privacy is None:
        raise InputError(f"{arguments.config}: privacy: expected a budget to sweep over, found null")
    experiments = {}
    for epsilon in arguments.eps:
        if not epsilon > 0:
            raise InputError(f"--eps: expected positive budgets, found {epsilon:g}")
        if epsilon < math.inf:
            privacy = dataclasses.replace(private.privacy, epsilon=epsilon)
            config = dataclasses.replace(private, privacy=privacy)
        elif recipe == "head":  # the same features without privacy
            config = dataclasses.replace(private, privacy=None)
        else:
            config = _non_private(arguments, private)
        experiments[epsilon] = override(config, flags, PROGRAM)
    return experiments


def _non_private(arguments: Arguments, private: Experiment) -> Experiment:
    config = load(Experiment, arguments.nonprivate_config)
    same = (config.data.store, config.data.findings) == (private.data.store, private.data.findings)
    if config.privacy is not None or not same:
        raise InputError(
            f"{arguments.nonprivate_config}: expected privacy null and the data of {arguments.config}; "
            "name the matching --nonprivate-config, or leave inf out of --eps"
        )
    return config


def _by_the_rule(
    experiments: Mapping[float, Experiment], recipe: Recipe, arguments: Arguments, flags: Sequence[str]
) -> tuple[dict[float, Experiment], dict[float, list[str]]]:
    """The experiment of each budget by the recipe, and what it chose and why.

    The model without privacy predicts by the same views as the private one of the configuration's own budget.
    """
    if recipe == "paper":
        return dict(experiments), {}
    from jaxcxr.workflows.experiment import number_of_units
    from jaxcxr.workflows.recipes import Rule, by_recipe

    rule, chosen, told = load(Rule, arguments.rule), {}, {}
    for epsilon, config in experiments.items():
        chosen[epsilon], told[epsilon] = by_recipe(recipe, config, number_of_units(config), rule)
        for sentence in told[epsilon]:
            say(f"epsilon {epsilon:g}: {sentence}")
    if math.inf in chosen:
        own = experiment_of(arguments.config, flags, PROGRAM)
        like, _ = by_recipe(recipe, own, number_of_units(own), rule)
        chosen[math.inf] = dataclasses.replace(
            chosen[math.inf],
            model=dataclasses.replace(
                chosen[math.inf].model, test_time_augmentation=like.model.test_time_augmentation
            ),
        )
    return chosen, told


def _rehearse(chosen: Mapping[float, Experiment]) -> None:
    from jaxcxr.workflows.rehearsal import rehearse

    for epsilon, config in chosen.items():
        print("without privacy" if math.isinf(epsilon) else f"epsilon {epsilon:g}")
        print("\n".join(f"  {line}" for line in rehearse(config, say).lines()) + "\n", flush=True)
