"""The command `jaxcxr audit`, from a clone: python scripts/audit.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("audit")
