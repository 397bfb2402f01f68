"""``python -m adapruner.cli``: for a process that starts another one without knowing where the script lies."""

from adapruner.cli import main

if __name__ == "__main__":
    main()
