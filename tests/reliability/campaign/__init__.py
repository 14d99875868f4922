"""The reliability campaign: it damages, interrupts, changes and forges what expunge reads, and counts what goes wrong.

`python -m tests.reliability --full` runs all of it; `test_campaign.py` a small share in CI. One kind of harm a file.
Every attempt has a number, and kind, seed and number repeat it.
"""

from __future__ import annotations

from campaign import changing, damage, disks, forgeries, kills, mutations, together
from campaign.count import Kind

KINDS: dict[str, Kind] = {
    module.KIND.name: module.KIND for module in (changing, damage, disks, forgeries, kills, mutations, together)
}
