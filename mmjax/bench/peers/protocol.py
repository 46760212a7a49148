"""What every peer does: speak the protocol of bench/peer.py. Peers run under an interpreter without mmjax; this lies beside them."""

import importlib
import json
import os
import sys
import time
from pathlib import Path


def serve(packages, prepare):
    """Runs steps as told on standard input; returns the exit status.

    `prepare(*modules, folder)` gives the step, warm, and what to say of it; it writes outputs.npz.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        sys.modules.setdefault("torchvision", None)  # not needed here; a build for another torch breaks imports
        torch, *others = (importlib.import_module(name) for name in packages)
    except Exception as e:
        names = " and ".join(packages)
        say(error=f"cannot import {names} ({type(e).__name__}: {e}); pip install {' '.join(packages)} there")
        return 1
    try:
        step, about = prepare(torch, *others, Path(sys.argv[1]))
    except Exception as e:
        say(error=f"{type(e).__name__}: {' '.join(str(e).split())[:300]}")
        return 1
    say(ready=True, **about)
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for line in sys.stdin:
        synchronise()
        began = time.perf_counter()
        for _ in range(json.loads(line)["steps"]):
            step()
        synchronise()
        say(seconds=time.perf_counter() - began)
    return 0
