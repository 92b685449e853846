"""The command `jaxcxr pretrain`, from a clone: python scripts/pretrain.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("pretrain")
