"""`python -m regpt`, and what torchrun starts."""

from regpt.cli import main

if __name__ == "__main__":
    main()
