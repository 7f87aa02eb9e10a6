"""``python -m w2vtool``: the same as the ``w2vtool`` command; what torchrun starts."""

from w2vtool.cli import main

if __name__ == "__main__":
    main()
