"""How much memory a capture takes beside the model.

    python store_memory.py MODEL FOLDER SEQUENCES BLOCK_MIB [LIMIT_MIB]

Anonymous memory (RssAnon: no pages of mapped files) is looked at whenever a module of the model is called and whenever
bytes go to disk, that is, at the same moments in plain forward passes and in the capture; the peaks are compared. With
a limit, RLIMIT_DATA caps all private writable memory of the process. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys

import torch

from interneuron.model.load import load_model
from interneuron.store import record
from interneuron.store.system import System

SITES = ["layers.*.resid_post", "layers.*.mlp.hidden"]


class Peak:
    """The largest anonymous memory seen, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def look(self, *_: object) -> None:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared = map(int, file.read().split()[:3])
        self.bytes = max(self.bytes, (resident - shared) * resource.getpagesize())

    def take(self) -> int:
        found, self.bytes = self.bytes, 0
        return found


def main(model_folder: str, folder: str, sequences: int, block: int, limit: int) -> dict[str, int]:
    torch.set_num_threads(1)
    model = load_model(model_folder)
    ids = torch.randint(3, 500, (sequences, 128), generator=torch.Generator().manual_seed(0))
    # Once before, so that what any first use allocates (imports, the model's self-check) is on neither side.
    record(model, ids[:16], SITES, folder + "-warm", block_bytes=1 << 20)
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    peak = Peak()
    for module in model.module.modules():
        module.register_forward_hook(peak.look)
    with torch.no_grad():
        for at in range(0, sequences, 8):
            model.module(ids[at : at + 8])
    plain = peak.take()
    write = System.pwrite
    System.pwrite = lambda self, *args: (peak.look(), write(self, *args))[1]
    store = record(model, ids, SITES, folder, block_bytes=block)
    return {"rows": store.n_rows, "bytes": store.n_bytes, "plain": plain, "record": peak.take()}


if __name__ == "__main__":
    model, folder, sequences, block = sys.argv[1:5]
    limit = int(sys.argv[5]) << 20 if len(sys.argv) > 5 else 0
    print(json.dumps(main(model, folder, int(sequences), int(block) << 20, limit)))
    sys.stdout.flush()
    os._exit(0)
