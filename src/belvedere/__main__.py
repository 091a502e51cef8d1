"""`python -m belvedere`: what torchrun starts."""

from belvedere.cli import main

if __name__ == "__main__":
    main()
