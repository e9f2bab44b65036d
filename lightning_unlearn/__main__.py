"""Entry point of ``python -m lightning_unlearn``."""

from lightning_unlearn.cli.main import run

if __name__ == "__main__":
    run()
