"""`python -m ldm <command>` is `paint-by-example <command>`."""

from ldm.cli.main import main

if __name__ == "__main__":
    main()
