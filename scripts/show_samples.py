"""Draw a contact sheet of training samples; see --help."""

from ldm.cli.show_samples import main

if __name__ == "__main__":
    main()
