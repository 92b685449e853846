"""What the runs of a sweep differ in beside privacy: what was trained, how long, and how it predicts."""

import math
from collections.abc import Mapping

from jaxcxr.report.run_facts import Facts

SCOPES: Mapping[str, str] = {
    "all": "the whole network",
    "head": "the head alone",
    "head_on_features": "the head alone",
    "head_and_norm": "the head and the norms",
    "last_stage": "the last stage and the head",
}
VIEWS: Mapping[str, str] = {
    "one": "each image as it is",
    "mirrored": "the mean over mirrored views",
    "mirrored_moved": "the mean over mirrored and shifted views",
}


def trained_parts(facts: Facts) -> str:
    """'the whole network': what a run trained."""
    scope = str((facts.config.get("training") or {}).get("scope", "all"))
    return SCOPES.get(scope, scope)


def differences(runs: Mapping[float, Facts]) -> str:
    """A sentence on how the runs of a sweep differ in their training beside privacy; empty if they do not.

    Args:
        runs: by budget; infinity is the run without privacy.
    """
    ways = [("trained", _trained), ("predicted by", _predicted)]
    differing = [(word, say) for word, say in ways if len({say(facts) for facts in runs.values()}) > 1]
    if not differing:
        return ""
    found: dict[str, list[float]] = {}
    for epsilon, facts in sorted(runs.items()):
        found.setdefault(", ".join(f"{word} {say(facts)}" for word, say in differing), []).append(epsilon)
    parts = [f"{_budgets(epsilons)}: {way}" for way, epsilons in found.items()]
    return (
        f"The models differ in more than their budget. {'; '.join(parts)}. What lies between them is due to "
        "this as well."
    )


def _trained(facts: Facts) -> str:
    training = facts.config.get("training") or {}
    steps, batch = facts.run.get("steps"), training.get("expected_batch_size")
    if steps is None or batch is None:
        return trained_parts(facts)
    return (
        f"{trained_parts(facts)} in {steps:,} steps of {batch:,} expected {facts.units} "
        f"({steps * batch:,} passes)"
    )


def _predicted(facts: Facts) -> str:
    views = str((facts.config.get("model") or {}).get("test_time_augmentation", "one"))
    return VIEWS.get(views, views)


def _budgets(epsilons: list[float]) -> str:
    finite = ", ".join(f"{epsilon:g}" for epsilon in epsilons if math.isfinite(epsilon))
    without = ["without privacy"] if math.inf in epsilons else []
    return " and ".join([f"ε = {finite}"] * bool(finite) + without)
