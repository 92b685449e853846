"""The command `jaxcxr account`, from a clone: python scripts/account.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("account")
