"""``python -m lumid`` is the command line."""

from lumid.dags.cli import main

if __name__ == "__main__":
    main()
