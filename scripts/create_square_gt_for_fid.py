"""Cut the central square of each picture, for FID; see --help."""

from ldm.cli.squares import main

if __name__ == "__main__":
    main()
