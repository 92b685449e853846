"""The command `jaxcxr risk`, from a clone: python scripts/risk.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("risk")
