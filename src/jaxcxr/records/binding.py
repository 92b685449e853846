"""Bind a run's randomness to what it trains, so that no noise is ever used on two different gradients.

The same noise on two different sums cancels in their difference. A run folder can be copied, its newest
checkpoint deleted, its configuration edited and the steps repeated: with keys derived from (secret, step)
alone, both copies would have the same batches and the same noise. So every key of a run (sampling, noise, the
images of a unit, augmented views, class counts) is derived from

    HMAC-SHA256(secret, digest)

instead of the secret, where the digest (SHA-256) covers everything that determines which function of the data
is released: the effective configuration, starting weights, data, the training code, library versions and
platform.

Guarantee: HMAC-SHA256 being a pseudorandom function, runs that share a secret and differ in anything that the
digest covers have independent batches and noise; runs that differ in nothing are the same release.
`Terms.binding` of the ledger holds the digest, so that the record of what was spent says for which function
it was spent. Not covered: the number of devices and processes, evaluation, and paths, none of which affects
what is released.
"""

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

_CHOSEN = "training.microbatch_size"
FACT = "run."
"""Prefix for facts that are in `run.json` but not in the configuration."""


@dataclasses.dataclass(frozen=True)
class Binding:
    """Everything that determines what a run releases, except its secret; values are those of JSON.

    Attributes:
        configuration: field -> effective value, calibrated noise and chosen sizes included.
        starting_weights: SHA-256 of the weights before the first step.
        data: fingerprint of the store.
        code: `jaxcxr`, the version, and `sources`, the fingerprint of the training code (`provenance`).
        libraries: name -> version.
        platform: kind of device, XLA flags, and JAX settings that change arithmetic.
    """

    configuration: Mapping[str, Any]
    starting_weights: str
    data: str
    code: Mapping[str, str]
    libraries: Mapping[str, str]
    platform: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all parts."""
        canonical = json.dumps(
            dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        return hashlib.sha256(b"jaxcxr binding " + canonical.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The parts and their digest, for `run.json`."""
        return {"digest": self.digest, **json.loads(json.dumps(dataclasses.asdict(self)))}


def bound_secret(secret: bytes, digest: str) -> bytes:
    """The secret from which all keys of a run are derived: a one-way function of its secret and the digest.

    Raises:
        ValueError: there is no digest.
    """
    if not digest:
        raise ValueError("digest: a run without a binding must not draw anything")
    return hmac.new(secret, b"jaxcxr bound " + digest.encode(), hashlib.sha256).digest()


def differences(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between a run to be resumed and the run that began, one phrase per part; empty if nothing.

    Args:
        begun: `Binding.as_json` of the run folder.
        now: the same of the run as it would be resumed.
    """
    phrases = {
        "configuration": "the configuration",
        "starting_weights": "the starting weights",
        "data": "the data",
        "code": "the code",
        "libraries": "library versions",
        "platform": "the platform",
    }
    found = []
    for part, called in phrases.items():
        there, here = begun.get(part), now[part]
        if there == here:
            continue
        told = [] if not isinstance(there, Mapping) else _fields(there, here)
        found.append(f"{called} ({'; '.join(told)})" if told else called)
    if not found and begun.get("digest") != now["digest"]:
        found.append("the digest of its own record, which was edited")
    return found


def altered(
    recorded: Mapping[str, Any] | None,
    in_ledger: str,
    configuration: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> list[str]:
    """Names of fields and facts that were changed in a run folder since the run began.

    Args:
        recorded: `Binding.as_json` of `run.json`; None in runs of earlier versions.
        in_ledger: `Terms.binding` of the ledger; empty in runs of earlier versions.
        configuration: field -> value of `config.yaml`; fields that the record does not know are skipped.
        facts: of `run.json`, beside the record; the card repeats some of them.

    Returns:
        Sorted names; `binding` alone if the record itself was edited or is missing.
    """
    if recorded is None:
        return ["binding"] if in_ledger else []
    try:
        parts = {field.name: recorded[field.name] for field in dataclasses.fields(Binding)}
        if not recorded["digest"] == Binding(**parts).digest == in_ledger:
            return ["binding"]
    except (KeyError, TypeError, ValueError):
        return ["binding"]
    then, now = parts["configuration"], json.loads(json.dumps(configuration))
    if now.get(_CHOSEN) is None:  # chosen from the device's memory when the run begins
        now.pop(_CHOSEN, None)
    now |= {f"{FACT}{name}": value for name, value in facts.items()}
    said = {"store_fingerprint": parts["data"]}
    if configuration.get("model.weights") is not None:
        said["initial_weights_sha256"] = parts["starting_weights"]
    return sorted(
        [name for name in then.keys() & now.keys() if then[name] != now[name]]
        + [name for name in then if name.startswith(FACT) and name not in now]
        + [f"{FACT}{name}" for name, value in said.items() if facts.get(name) != value]
    )


def _fields(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    return [
        "other sources"
        if name == "sources"
        else f"{name}: {_short(there.get(name))} there, {_short(here.get(name))} now"
        for name in names
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
