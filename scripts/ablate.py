"""The command `jaxcxr ablate`, from a clone: python scripts/ablate.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("ablate")
