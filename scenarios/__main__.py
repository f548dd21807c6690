"""python -m scenarios: the `whatif` command line."""

from scenarios.cli import main

if __name__ == "__main__":
    main()
