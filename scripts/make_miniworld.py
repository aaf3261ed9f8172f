"""The command `paint-by-example make-miniworld`; see ldm/cli/make_miniworld.py."""

from ldm.cli.make_miniworld import main

if __name__ == "__main__":
    main()
