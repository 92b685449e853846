"""The command `jaxcxr compare`, from a clone: python scripts/compare.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("compare")
