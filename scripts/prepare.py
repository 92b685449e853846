"""The command `jaxcxr prepare`, from a clone: python scripts/prepare.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("prepare")
