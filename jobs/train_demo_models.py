"""Train the small models of the demo: text-to-image pipeline, captioner and prompt writer.

    python jobs/train_demo_models.py out/training
    python jobs/train_demo_models.py out/training --only captioner --shares 2
    python jobs/train_demo_models.py out/training --autoencoder-from models/scenes --shares 2
    python jobs/train_demo_models.py out/training --device cuda

Run again with the same arguments, it continues from its checkpoints. The newest models are in
`pipeline`, `captioner` and `prompt_writer` there.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from diffedit_batch.demo.captioner import CAPTIONER, train_captioner
from diffedit_batch.demo.prompt_writer import PROMPT_WRITER, train_prompt_writer
from diffedit_batch.demo.train import TrainSettings, train


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    default = TrainSettings(output=Path())
    stages = {
        "autoencoder": default.autoencoder,
        "denoiser": default.denoiser,
        "captioner": CAPTIONER,
        "prompt_writer": PROMPT_WRITER,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder of checkpoints and results")
    parser.add_argument("--only", choices=("pipeline", "captioner", "prompt_writer"))
    parser.add_argument(
        "--autoencoder-from", type=Path, help="pipeline folder whose autoencoder to take"
    )
    for name, stage in stages.items():
        parser.add_argument(f"--{name.replace('_', '-')}-steps", type=int, default=stage.steps)
    parser.add_argument("--scenes", type=int, default=default.scenes, help="scenes encoded once")
    parser.add_argument(
        "--shares", type=int, default=1, help="threads; on a CPU, one for every core"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--device", default=default.device)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.shares > 1:
        torch.set_num_threads(1)  # shares are threads already
    output, seed, device = arguments.output, arguments.seed, arguments.device
    for name, stage in stages.items():
        steps = getattr(arguments, f"{name}_steps")
        stages[name] = replace(stage, steps=steps, shares=arguments.shares)
    if arguments.only in (None, "pipeline"):
        train(
            TrainSettings(
                output=output,
                autoencoder_from=arguments.autoencoder_from,
                autoencoder=stages["autoencoder"],
                denoiser=stages["denoiser"],
                scenes=arguments.scenes,
                seed=seed,
                device=device,
            )
        )
    if arguments.only in (None, "captioner"):
        train_captioner(output, stages["captioner"], seed=seed, device=device)
    if arguments.only in (None, "prompt_writer"):
        train_prompt_writer(output, stages["prompt_writer"], seed=seed, device=device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
