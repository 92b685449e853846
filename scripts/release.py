"""The command `jaxcxr release`, from a clone: python scripts/release.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("release")
