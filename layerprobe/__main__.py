"""The `layerprobe` command, also as `python -m layerprobe`."""

from layerprobe import interrupt


def main() -> None:
    """Run the command; Ctrl-C ends it with one line, also while libraries are imported."""
    interrupt.end_quietly()
    from layerprobe.cli import app

    try:
        app()
    except SystemExit as ended:
        if interrupt.heard():
            interrupt.end_at_once(ended.code)
        raise


if __name__ == "__main__":
    main()
