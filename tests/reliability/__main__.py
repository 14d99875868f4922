"""The reliability campaign as a command; see docs/reliability.md.

python -m tests.reliability                          a small share of each kind, as in CI
python -m tests.reliability --full                   all of it, in about an hour of one core
python -m tests.reliability --kind kills --only 17   one attempt again
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]


def main() -> int:
    """Run the campaign, print each fault and how to repeat it, and keep the counts; 1 if there was a fault."""
    import torch
    from campaign import KINDS
    from campaign.count import campaign
    from campaign.counts import added, write_page

    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all attempts, instead of CI's share")
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="only this kind; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="other attempts of the same kinds")
    parser.add_argument("--only", type=int, action="append", help="only the attempt with this number; repeatable")
    parser.add_argument("--part", default="1/1", help="the first of three thirds: 1/3")
    parser.add_argument("--counts", type=Path, help="add the counts to this JSON file")
    parser.add_argument("--page", type=Path, help="write the table of --counts into this page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, arguments.part.split("/"))
    faults = 0
    for name in [] if arguments.page else arguments.kind or sorted(KINDS):
        kind = KINDS[name]
        numbers = arguments.only or list(range(kind.full) if arguments.full else kind.small)
        numbers = numbers[len(numbers) * (part - 1) // parts : len(numbers) * part // parts]
        tally = campaign(kind, arguments.seed, numbers)
        faults += len(tally.findings)
        print(f"{name}: {sum(tally.tried.values())} attempts, {len(tally.findings)} faults, {tally.seconds:.0f} s")
        if arguments.counts:
            added(arguments.counts, name, tally)
    if arguments.page:
        write_page(arguments.counts, arguments.page)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
