"""Train Paint by Example; see --help."""

from ldm.cli.train import main, merged, parser  # noqa: F401  for scripts that read configs as main.py does
from ldm.data.datamodule import DataModuleFromConfig  # noqa: F401  configs name it main.DataModuleFromConfig

if __name__ == "__main__":
    main()
