"""How fast data is prepared and loaded, beside a plain version of the published procedure, in one run.

    python scripts/benchmark_data.py                        # everything, takes minutes
    python scripts/benchmark_data.py --pictures 2000 --rows 100000 --samples 50 --entries 10000

Four parts: samples from 1024 x 768 JPEGs at 512 x 512, on one core; read_bbox.py on random pictures in 16 folders; the
boxes of a CSV as long as OpenImages' (--rows), without the pictures' headers; an index as long as OpenImages'
(--entries), and what each worker process adds to its memory. The published procedure needs pandas."""

import tempfile
from pathlib import Path

from ldm.cli.command import command, command_parser
from ldm.speed.data import measure_large_index, measure_loading, measure_long_csv, measure_preparation, photographs


@command
def main() -> None:
    p = command_parser(__doc__)
    p.add_argument("--pictures", type=int, default=20_000, help="pictures to prepare (%(default)s)")
    p.add_argument("--rows", type=int, default=14_600_000, help="rows of the long CSV (%(default)s)")
    p.add_argument("--samples", type=int, default=400, help="samples to load (%(default)s)")
    p.add_argument("--entries", type=int, default=1_740_000, help="pictures in the large index (%(default)s)")
    p.add_argument(
        "--folder", default="/dev/shm", help="for temporary files; in memory no disk is measured (%(default)s)"
    )
    opt = p.parse_args()
    pictures = photographs(64)
    with tempfile.TemporaryDirectory(dir=opt.folder) as folder:
        print(measure_loading(Path(folder, "loading"), opt.samples, pictures))
        print(measure_preparation(Path(folder, "preparation"), opt.pictures, 10 * opt.pictures, pictures))
        print(measure_long_csv(Path(folder, "csv"), opt.rows))
        print(measure_large_index(Path(folder, "index"), opt.entries))


if __name__ == "__main__":
    main()
