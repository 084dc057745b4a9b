"""The program. A hook goes its own short way before anything else is imported."""

import sys


def main() -> None:
    if sys.argv[1:2] == ["hook"] and sys.argv[2:3] and not sys.argv[2].startswith("-"):
        from yolo_supervisor import hook

        hook.main()
    from yolo_supervisor.cli import program

    program()


if __name__ == "__main__":
    main()
