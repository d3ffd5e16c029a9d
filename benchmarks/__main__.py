"""`python -m benchmarks [NAME...]`: every benchmark, or those named."""

import sys

from benchmarks import main

if __name__ == "__main__":
    main(*sys.argv[1:])
