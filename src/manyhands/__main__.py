"""`python -m manyhands`: the same as the command `manyhands`."""

from manyhands.cli.main import main

if __name__ == "__main__":
    main()
