"""The command `jaxcxr sweep`, from a clone: python scripts/sweep.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("sweep")
