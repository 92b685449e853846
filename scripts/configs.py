"""The command `jaxcxr configs`, from a clone: python scripts/configs.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("configs")
