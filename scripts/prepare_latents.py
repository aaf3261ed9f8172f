"""Encode training samples once, for many epochs; see --help."""

from ldm.cli.prepare_latents import main

if __name__ == "__main__":
    main()
