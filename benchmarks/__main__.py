"""`python -m benchmarks [NAME...]`: every benchmark, or those named."""

import sys

from benchmarks import start, stream

BENCHMARKS = {"stream": stream.main, "start": start.main}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name]()
