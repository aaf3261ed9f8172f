"""Give Stable Diffusion 9 input channels, or add a fine-tuned model's difference: see ldm/cli/modify.py."""

from ldm.cli.modify import main

if __name__ == "__main__":
    main()
