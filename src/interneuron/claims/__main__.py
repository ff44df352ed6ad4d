"""One claim in this process: `python -m interneuron.claims SLUG --seeds 0 1 2 --out FOLDER [--force]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from interneuron.claims.runner import RESULTS, run_claim
from interneuron.core.errors import InterneuronError


def main() -> int:
    """Run the claim named on the command line; print its verdict, or one line that says what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m interneuron.claims", description=__doc__)
    parser.add_argument("slug")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--force", action="store_true")
    asked = parser.parse_args()
    try:
        result = run_claim(asked.slug, asked.seeds, asked.out, asked.force)
    except InterneuronError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"{result['verdict']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
