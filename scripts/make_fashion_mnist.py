"""Make the embedded Fashion-MNIST file from the official IDX files.

    apt-get install dataset-fashion-mnist
    python scripts/make_fashion_mnist.py [FOLDER]

Takes the first 10,000 training and the first 2,000 test images of the official split, in their official order.
"""

import sys
from pathlib import Path

import numpy as np

from expunge.data._idx import read_idx
from expunge.data.fashion_mnist import DEBIAN, EMBEDDED, FILES

TRAIN, TEST = 10_000, 2_000


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN
    x, y, tx, ty = (read_idx(folder / f"{name}-ubyte.gz") for name in FILES)
    EMBEDDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(EMBEDDED, x=x[:TRAIN], y=y[:TRAIN], tx=tx[:TEST], ty=ty[:TEST])
    print(f"{EMBEDDED}: {EMBEDDED.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
