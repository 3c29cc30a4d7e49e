"""Train the small text-to-image model that the demo edits with.

    python jobs/train_demo_models.py out/training
    python jobs/train_demo_models.py out/training --init-from models/scenes --shares 2
    python jobs/train_demo_models.py out/training --device cuda

Run again with the same arguments, it continues from its checkpoints. The newest pipeline is in
`out/training/pipeline`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffedit_batch.demo.train import TrainSettings, train


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    default = TrainSettings(output=Path())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder of checkpoints and results")
    parser.add_argument("--init-from", type=Path, help="pipeline folder to continue from")
    parser.add_argument("--autoencoder-steps", type=int, default=default.autoencoder.steps)
    parser.add_argument("--denoiser-steps", type=int, default=default.denoiser.steps)
    parser.add_argument("--scenes", type=int, default=default.scenes, help="scenes encoded once")
    parser.add_argument(
        "--shares", type=int, default=1, help="threads; on a CPU, one for every core"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--device", default=default.device)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(
        TrainSettings(
            output=arguments.output,
            init_from=arguments.init_from,
            autoencoder=replace(
                default.autoencoder, steps=arguments.autoencoder_steps, shares=arguments.shares
            ),
            denoiser=replace(
                default.denoiser, steps=arguments.denoiser_steps, shares=arguments.shares
            ),
            scenes=arguments.scenes,
            seed=arguments.seed,
            device=arguments.device,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
