"""The command `jaxcxr check`, from a clone: python scripts/check.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("check")
