"""How much of a claimed epsilon the attacks prove of right code: audits of the size that `jaxcxr audit` has.

    python -m tests.audit.tightness [--canaries N] [EPSILON ...]

On random images, with the logistic regression. Prints a row per claim and attack, and the seconds.
"""

import argparse
import os

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


def main(claims: list[float], canaries: int) -> None:
    """Print the table."""
    print(
        "| claimed | attack | proved | share | refuted | wall, processor seconds |\n|---|---|---|---|---|---|"
    )
    for epsilon in claims:
        began, used = time.time(), time.process_time()
        size = Size(epsilon=epsilon, sample_rate=0.1, canaries=canaries)
        subject = subject_of(CONFIG, small.split(600, side=32), size, np.random.default_rng(0))
        found = small.audited(0, subject)
        took = f"{time.time() - began:.0f}, {time.process_time() - used:.0f}"
        for attack in found.attacks:
            share = attack.epsilon_lower / found.epsilon_claimed
            print(f"| {epsilon:g} | {attack.name} | {attack.epsilon_lower:.3f} | {share:.2f} | {found.refuted} | {took} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--canaries", type=int, default=Size.canaries)
    parser.add_argument("claims", type=float, nargs="*", default=[1.0, 4.0, 8.0], metavar="EPSILON")
    asked = parser.parse_args()
    main(asked.claims, asked.canaries)
