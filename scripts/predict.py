"""The command `jaxcxr predict`, from a clone: python scripts/predict.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("predict")
