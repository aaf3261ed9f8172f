"""Convert a checkpoint to another format: see ldm/cli/convert.py."""

from ldm.cli.convert import main

if __name__ == "__main__":
    main()
