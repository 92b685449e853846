"""The command `jaxcxr init`, from a clone: python scripts/init.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("init")
