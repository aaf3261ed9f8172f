"""The command `paint-by-example evaluate`; see ldm/cli/evaluate.py."""

from ldm.cli.evaluate import main

if __name__ == "__main__":
    main()
