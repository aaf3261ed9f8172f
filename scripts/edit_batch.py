"""Edit many photos by example; see ldm/cli/batch.py."""

from ldm.cli.batch import main

if __name__ == "__main__":
    main()
