"""Prepare pictures with boxes for training; see --help."""

from ldm.cli.prepare import main

if __name__ == "__main__":
    main()
