"""How much of a claimed epsilon the attacks prove of right code: audits of the size that `jaxcxr audit` has.

    python -m tests.audit.tightness [EPSILON ...]

On random images, with the logistic regression. Prints a row per claim and attack, and the seconds.
"""

import os
import sys

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
import time

import numpy as np

from jaxcxr.audit.subject import Size, subject_of
from tests.audit import small

assert small.CONFIG.privacy is not None
CONFIG = dataclasses.replace(
    small.CONFIG, privacy=dataclasses.replace(small.CONFIG.privacy, delta=1e-5, l2_clip_norm=1.5)
)


def main(claims: list[float]) -> None:
    """Print the table."""
    print(
        "| claimed | attack | proved | share | refuted | wall, processor seconds |\n|---|---|---|---|---|---|"
    )
    for epsilon in claims:
        began, used = time.time(), time.process_time()
        size = Size(epsilon=epsilon, sample_rate=0.1)
        subject = subject_of(CONFIG, small.split(600, side=32), size, np.random.default_rng(0))
        found = small.audited(0, subject)
        took = f"{time.time() - began:.0f}, {time.process_time() - used:.0f}"
        for attack in found.attacks:
            share = attack.epsilon_lower / found.epsilon_claimed
            print(f"| {epsilon:g} | {attack.name} | {attack.epsilon_lower:.3f} | {share:.2f} | {found.refuted} | {took} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main([float(argument) for argument in sys.argv[1:]] or [1.0, 4.0, 8.0])
