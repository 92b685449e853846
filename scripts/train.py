"""The command `jaxcxr train`, from a clone: python scripts/train.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("train")
