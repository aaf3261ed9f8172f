"""The command `paint-by-example mini-table`; see ldm/cli/mini_table.py."""

from ldm.cli.mini_table import main

if __name__ == "__main__":
    main()
