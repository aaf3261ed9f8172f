"""The command `paint-by-example fit-quality`; see ldm/cli/fit_quality.py."""

from ldm.cli.fit_quality import main

if __name__ == "__main__":
    main()
