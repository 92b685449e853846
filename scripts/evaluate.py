"""The command `jaxcxr evaluate`, from a clone: python scripts/evaluate.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("evaluate")
