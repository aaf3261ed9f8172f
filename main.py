"""Train Paint by Example; see --help."""

from ldm.cli.train import main
from ldm.data.datamodule import DataModuleFromConfig  # noqa: F401  configs name it main.DataModuleFromConfig

if __name__ == "__main__":
    main()
