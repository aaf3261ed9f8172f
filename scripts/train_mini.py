"""The command `paint-by-example train-mini`; see ldm/cli/train_mini.py."""

from ldm.cli.train_mini import main

if __name__ == "__main__":
    main()
