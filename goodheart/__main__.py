"""`python -m goodheart`, which `torchrun -m goodheart` needs."""

from goodheart.cli import main

if __name__ == "__main__":
    main()
