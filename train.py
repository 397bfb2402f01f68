"""The command line from a bare checkout: ``python train.py fit --config quickstart.yaml``."""

from adapruner.cli import main

if __name__ == "__main__":
    main()
