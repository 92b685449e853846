"""The command `jaxcxr export`, from a clone: python scripts/export.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("export")
