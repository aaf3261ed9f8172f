"""Edit every case of a benchmark; see ldm/cli/edit_benchmark.py."""

from ldm.cli.edit_benchmark import main

if __name__ == "__main__":
    main()
