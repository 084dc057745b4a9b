"""The program. A hook and a commit go their own short ways before anything else is imported."""

import sys


def main() -> None:
    if "hook" in sys.argv and not {"-h", "--help"} & {*sys.argv}:
        from yolo_supervisor import hook

        hook.main()  # returns only where another command is meant
    if "commit" in sys.argv:
        from yolo_supervisor.commits import fast_path

        fast_path.main()  # the same
    from yolo_supervisor.cli.app import program

    program()


if __name__ == "__main__":
    main()
