"""Edit a photo by example; see ldm/cli/edit.py."""

from ldm.cli.edit import main

if __name__ == "__main__":
    main()
