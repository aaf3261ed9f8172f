"""The command `paint-by-example learn-object`; see ldm/cli/learn_object.py."""

from ldm.cli.learn_object import main

if __name__ == "__main__":
    main()
