"""The command `paint-by-example which-reference`; see ldm/cli/which_reference.py."""

from ldm.cli.which_reference import main

if __name__ == "__main__":
    main()
