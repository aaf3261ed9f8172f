"""Make a benchmark from your own pictures; see --help."""

from ldm.cli.make_benchmark import main

if __name__ == "__main__":
    main()
