"""The memory of a step on a processor, in a process of its own."""

import subprocess
import sys

import pytest

REPEATED = """
import resource
import statistics
import jax
import jax.numpy as jnp
from jaxcxr.training.cpu_allocator import keep_memory

keep_memory()
ROWS = 2**19  # a product of 128 MiB: glibc keeps pieces up to 64 MiB for other threads than the main one, too
step = jax.jit(lambda x: jnp.sin(x @ jnp.ones((16, 64))).T @ x)
x = jnp.ones((ROWS, 16))
page_faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults = []
for _ in range(15):
    before = page_faults()
    step(x).block_until_ready()
    faults.append(page_faults() - before)
temporary = step.lower(x).compile().memory_analysis().temp_size_in_bytes
print(temporary, statistics.median(faults) * resource.getpagesize())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_working_memory_is_kept_between_steps() -> None:
    """Of the pages that a call needs the kernel has hardly any to zero; it would have all of them, at every call.

    By the median of the calls: the first ones grow the heap, and now and then one finds its place taken by a small piece.
    """
    done = subprocess.run([sys.executable, "-c", REPEATED], capture_output=True, text=True, check=True)
    needed, zeroed = map(float, done.stdout.split())
    assert needed >= 128 << 20
    assert zeroed < 0.01 * needed
