"""The web page: see ldm/cli/web.py."""

from ldm.cli.web import main

if __name__ == "__main__":
    main()
