"""Measure the speed of an edit: see ldm/cli/benchmark.py."""

from ldm.cli.benchmark import main

if __name__ == "__main__":
    main()
