"""Start `train.run` in a process of a test's own, as torchrun does: DeepSpeed on CPU without compiling its extra operators."""

import os
import signal
import sys
from pathlib import Path


def die_in(place: str) -> None:
    """Have this process kill itself (-9) at a place in a save: `model` after the weights, `optimizer` in the middle of them."""
    import torch
    from transformers import Trainer

    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if place == "model":
        Trainer._save_optimizer_and_scheduler = kill
    else:
        save = torch.save

        def half(state: object, path: str) -> None:
            if Path(path).name != "optimizer.pt":
                return save(state, path)
            save(state, path)
            data = Path(path).read_bytes()
            Path(path).write_bytes(data[: len(data) // 2])
            kill()

        torch.save = half


if __name__ == "__main__":
    if os.environ.get("DS_ACCELERATOR"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if os.environ.get("DIE_IN"):
        die_in(os.environ["DIE_IN"])
    from train.run import main

    main(sys.argv[1:])
