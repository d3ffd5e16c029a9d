"""`python -m benchmarks`: every benchmark."""

from benchmarks import stream

if __name__ == "__main__":
    stream.main()
