"""How a script speaks to its user: its own lines only, and one sentence for a mistake."""

import logging
import os
import sys
import warnings
from collections.abc import Callable


def quiet() -> None:
    """Keep library chatter off the screen; call it before jax, orbax or dp-accounting are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "")
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a user's mistake becomes one line and exit status 2, Ctrl-C exit status 130."""
    from jaxcxr.errors import InputError

    quiet()
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
