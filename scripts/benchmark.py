"""The command `jaxcxr benchmark`, from a clone: python scripts/benchmark.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("benchmark")
