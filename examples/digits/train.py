"""Train the demo models on 4,000 real digits, on a CPU, in minutes.

    python examples/digits/train.py --model all -o examples/digits

The recipe was chosen with --holdout: 1,000 of the 4,000 training digits were kept back and judged it. The 1,000 test
digits are looked at once, after the last epoch of a run without --holdout. The same seed, machine and versions give the
same weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import SPLIT_SEED, TRAIN_PER_CLASS, Digits, digits_split, split
from safetensors.torch import save
from torch.nn import functional as F

from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.errors import MlpDeployError
from mlpdeploy.models.build import Model
from mlpdeploy.models.create import create_model
from mlpdeploy.models.registry import DEMO_MODELS, resolve_model

HOLDOUT_SEED = 1


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        epochs: passes over the training digits.
        batch: digits per step.
        learning_rate: the highest; it rises over the first `warmup` part of the steps and falls as a cosine to zero.
        warmup: part of all steps.
        weight_decay: of matrices; vectors (biases, norms) have none.
        label_smoothing: part of the target that is spread over all classes.
        ema: the trained weights are an average in which each step keeps this part of the old one.
        degrees: the largest rotation to either side.
        scale: the largest relative change of size, for height and width apart.
        shear: the largest slant, sideways pixels per pixel.
        shift_pixels: the largest move along each axis.
        elastic_pixels: standard deviation of the smooth distortion at its 6 x 6 knots.
        clip: the largest norm of the gradient.
    """

    epochs: int = 30
    batch: int = 64
    learning_rate: float = 3e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    ema: float = 0.995
    degrees: float = 12.0
    scale: float = 0.15
    shear: float = 0.2
    shift_pixels: float = 2.0
    elastic_pixels: float = 0.8
    clip: float = 1.0


def augment(images: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Return the digits turned, scaled, slanted, moved and distorted, each by its own chance.

    Args:
        images: (N, 1, H, W) float32, 0 is the background.
    """
    count, _, height, width = images.shape

    def uniform(largest: float, *more: int) -> torch.Tensor:
        return (torch.rand(count, *more, generator=generator) * 2 - 1) * largest

    angle, slant = uniform(recipe.degrees) * (torch.pi / 180), uniform(recipe.shear)
    zoom, move = 1 + uniform(recipe.scale, 2), uniform(recipe.shift_pixels, 2) * 2 / width
    cos, sin = angle.cos(), angle.sin()
    # Where in the old picture each pixel of the new one comes from, in units of half the side.
    rows = [torch.stack([cos, slant * cos - sin], 1), torch.stack([sin, slant * sin + cos], 1)]
    matrix = torch.stack(rows, 1) * zoom[:, None, :]
    grid = F.affine_grid(torch.cat([matrix, move[:, :, None]], 2), [count, 1, height, width], align_corners=False)
    knots = torch.randn(count, 2, 6, 6, generator=generator) * recipe.elastic_pixels * 2 / width
    bend = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)
    return F.grid_sample(images, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def normalized(images: torch.Tensor, name: str) -> torch.Tensor:
    """Return (N, 1, H, W) pixels of 0..1 as the model wants them."""
    preprocessing = resolve_model(name).preprocessing
    return (images - preprocessing.mean[0]) / preprocessing.std[0]


def as_tensor(digits: Digits) -> torch.Tensor:
    """Return (N, 1, 28, 28) float32 in 0..1."""
    return torch.from_numpy(digits.images)[:, None].float() / 255


@torch.inference_mode()
def predict(model: Model, digits: Digits) -> np.ndarray:
    """Return the class of each digit, (N,) int64."""
    images = normalized(as_tensor(digits), model.name)
    return torch.cat([model(part).argmax(1) for part in images.split(250)]).numpy()


def accuracy_percent(model: Model, digits: Digits) -> float:
    """Return the part of the digits that the model names rightly, in percent."""
    return round(100 * float((predict(model, digits) == digits.labels).mean()), 2)


def fit(name: str, digits: Digits, recipe: Recipe, seed: int, max_steps: int | None = None) -> Model:
    """Return the trained model, with averaged weights; a line on stderr after each epoch.

    Args:
        max_steps: stop after so many steps (for a trial).
    """
    model, average = create_model(name, seed=seed).train(), create_model(name, seed=seed)
    if resolve_model(name).family == "vip":
        model.to(memory_format=torch.channels_last)  # the tokens leave the convolutions in order: a third less time
    generator = torch.Generator().manual_seed(seed)
    images, labels = as_tensor(digits), torch.from_numpy(digits.labels)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    steps_per_epoch = max(1, len(labels) // recipe.batch)  # what is left over waits for the next epoch's order
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        recipe.epochs * steps_per_epoch,
        pct_start=recipe.warmup,
        cycle_momentum=False,
        final_div_factor=1e4,
    )
    start, step = time.monotonic(), 0
    for epoch in range(recipe.epochs):
        loss_sum = 0.0
        parts = torch.randperm(len(labels), generator=generator).split(recipe.batch)[:steps_per_epoch]
        for part in parts:
            x = normalized(augment(images[part], recipe, generator), name)
            loss = F.cross_entropy(model(x), labels[part], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            update_average(average, model, min(recipe.ema, (1 + step) / (10 + step)))
            loss_sum, step = loss_sum + loss.item(), step + 1
            if step == max_steps:
                return average
        seconds = time.monotonic() - start
        left = seconds / (epoch + 1) * (recipe.epochs - epoch - 1)
        print(
            f"{name}: epoch {epoch + 1} of {recipe.epochs}, loss {loss_sum / steps_per_epoch:.4f}, "
            f"{seconds:.0f} s, {left:.0f} s to go",
            file=sys.stderr,
            flush=True,
        )
    return average


@torch.no_grad()
def update_average(average: Model, model: Model, keep: float) -> None:
    """Move the averaged weights towards the model's, by 1 - `keep` of the way."""
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - keep)


def train(
    name: str, recipe: Recipe, seed: int, holdout: int, max_steps: int | None = None
) -> tuple[Model, dict[str, Any]]:
    """Return the trained model and what a results file says about it.

    Args:
        holdout: digits of every class that are taken from the training digits and judge instead of the test digits.
    """
    record = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "tools": tool_versions(["torch", "numpy", "safetensors", "mlxtend"]),
    }
    digits, judge = digits_split()
    if holdout:
        digits, judge = split(digits, holdout, HOLDOUT_SEED)
    start, start_cpu = time.monotonic(), time.process_time()
    model = fit(name, digits, recipe, seed, max_steps)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - start_cpu
    return model, {
        "accuracy_percent": accuracy_percent(model, judge),
        "judged_by": f"{len(judge.labels)} {'held-out training' if holdout else 'test'} digits",
        "trained_on": len(digits.labels),
        "split_seed": SPLIT_SEED,
        "seed": seed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": asdict(recipe),
        **record,
    }


def write_result(path: Path, name: str, result: dict[str, Any]) -> None:
    """Put a model's result into a JSON file, in place of an older one of the same model."""
    results = json.loads(path.read_text()) if path.exists() else {}
    write_file(path, (json.dumps({**results, name: result}, indent=1, sort_keys=True) + "\n").encode())


def at_least_one(text: str) -> int:
    """Return a whole number of at least 1, or let argparse refuse it."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def main(arguments: list[str] | None = None) -> None:
    """Train one model or both, write the weights and say how good they are."""
    names = [entry.name for entry in DEMO_MODELS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=[*names, "all"], default="all", help="default: all")
    add("--epochs", type=at_least_one, default=Recipe.epochs, help=f"default: {Recipe.epochs}")
    add("--seed", type=int, default=0, help="of first weights, order and distortions; default: 0")
    add("-o", "--output", type=Path, required=True, help="the folder for <model>.safetensors")
    add("--results", type=Path, metavar="FILE", help="a JSON file to put accuracy, time, machine and versions into")
    add("--threads", type=at_least_one, default=1, help="default: 1; other numbers round differently")
    add(
        "--holdout",
        type=int,
        default=0,
        metavar="N",
        help="judge by N training digits of each class, kept back",
    )
    add("--max-steps", type=at_least_one, metavar="N", help="stop early: to try the script out")
    options = parser.parse_args(arguments)
    if not 0 <= options.holdout < TRAIN_PER_CLASS:
        parser.error(f"argument --holdout: {options.holdout} of the {TRAIN_PER_CLASS} training digits of each class")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for name in names if options.model == "all" else [options.model]:
            recipe = Recipe(epochs=options.epochs)
            model, result = train(name, recipe, options.seed, options.holdout, options.max_steps)
            path = options.output / f"{name}.safetensors"
            write_file(path, save(dict(model.state_dict())))
            if options.results:
                write_result(options.results, name, result)
            print(
                f"{path}: {result['accuracy_percent']:.1f} % of {result['judged_by']} right, "
                f"{path.stat().st_size / 1e6:.2f} MB, trained in {result['seconds']:.0f} s",
                flush=True,
            )
    except (MlpDeployError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
