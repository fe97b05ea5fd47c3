"""Where the command begins: signals are handled before anything that takes long is imported."""

import sys

from reflogp.stages.signals import ending


def main() -> None:
    """Run the command."""
    with ending(lambda line: print(line, file=sys.stderr)):
        from reflogp.pipeline.cli import main as command

        command()


if __name__ == "__main__":
    main()
