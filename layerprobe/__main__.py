"""`python -m layerprobe` is the `layerprobe` command."""

from layerprobe.cli import main

main()
