"""The command `jaxcxr contact-sheet`, from a clone: python scripts/contact_sheet.py --help."""

from jaxcxr.cli.commands import start

if __name__ == "__main__":
    start("contact-sheet")
