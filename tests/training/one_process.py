"""One process of a run by several: `one_process.py FOLDER`, started by test_processes.py with the variables that name the others.

Trains a tiny network by FOLDER/config.yaml in FOLDER/run, with an accident on the way, and writes what it saw to FOLDER/seen.INDEX.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jaxcxr.cli.console import quiet


def main(folder: Path) -> None:
    import jax
    import numpy as np

    from jaxcxr.config import Experiment
    from jaxcxr.config_files import load
    from jaxcxr.data.store import open_store
    from jaxcxr.errors import InputError
    from jaxcxr.models import network
    from jaxcxr.records.ledger import Entry, Ledger
    from jaxcxr.training import batches, loop, plan
    from jaxcxr.training.distributed import connect, is_process_0
    from jaxcxr.training.loop import train
    from tests.training.tiny import tiny_network

    several = connect()
    network.make_network = tiny_network
    loop.bound_secret = lambda secret, _: secret  # draws that do not change with the code
    config = load(Experiment, folder / "config.yaml")
    planned = plan.make_plan(config, open_store(config.data.store))
    shares: list[tuple[int, int]] = []
    microbatch, record = batches.microbatch, Ledger.record

    def watched(of: Any, secret: bytes, step: int, *others: Any) -> Any:
        batch = microbatch(of, secret, step, *others)
        shares.append((step, int(batch["is_real"].sum())))
        return batch

    def full_disk(self: Ledger, entry: Any) -> None:
        if isinstance(entry, Entry) and entry.step == 2:
            raise InputError("the ledger's disk is full")
        record(self, entry)

    seen: dict[str, Any] = {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "several": several,
    }
    if several:
        Ledger.record = full_disk  # type: ignore[method-assign]
        try:
            train(planned, folder / "run", progress=False)
        except InputError as error:
            seen["refused"] = str(error)
        Ledger.record = record  # type: ignore[method-assign]
    batches.microbatch = watched
    outcome = train(planned, folder / "run", resume=several, progress=False)
    seen |= {"shares": shares, "steps": outcome.steps_done}
    try:
        train(planned, folder / "occupied", progress=False)
    except InputError as error:
        seen["occupied"] = str(error)
    if is_process_0():
        flat = jax.tree_util.tree_leaves_with_path(outcome.params)
        named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
        np.savez(folder / "params.npz", allow_pickle=False, **named)
    (folder / f"seen.{jax.process_index()}.json").write_text(json.dumps(seen))
    print("done")


if __name__ == "__main__":
    quiet()
    main(Path(sys.argv[1]))
