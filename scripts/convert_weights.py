"""The command `jaxcxr convert-weights`, from a clone: python scripts/convert_weights.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("convert-weights")
