"""The command `jaxcxr explain`, from a clone: python scripts/explain.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("explain")
