"""The command `jaxcxr describe`, from a clone: python scripts/describe.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("describe")
