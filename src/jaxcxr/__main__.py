"""`python -m jaxcxr` is the console command `jaxcxr`."""

from jaxcxr.cli.commands import main

if __name__ == "__main__":
    main()
