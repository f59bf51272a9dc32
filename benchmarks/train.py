"""A training step, and the whole loop, beside the same model in plain timm and a loop as one would write it first.

    python benchmarks/train.py --part step                       # the model alone, images in memory
    python benchmarks/train.py --part loop --source ~/dicom      # from the disk: `lumid pretrain` and the plain loop
    python benchmarks/train.py --device cuda --size large        # what gpu.sh runs

The plain model is timm's blocks, every patch embedded and then hidden, eager, AdamW with its defaults. It takes lumid's
weights, and its loss must be the same before anything is timed. The plain loop is torchvision's ImageFolder of 8-bit PNG
of the same images with RandomResizedCrop, in as many worker processes as lumid has threads. On a GPU both compute in
bfloat16, the plain loop once more in float32. Ways take turns; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lumid.model.flops import peak_flops, training_flops
from lumid.model.journal import METRICS, WINDOW
from lumid.model.mae import SIZES, MaskedAutoencoder
from lumid.model.optimizer import build_optimizer
from lumid.model.parallel import Parallel, autocast, prepare
from lumid.model.pretrain import Listener, pretrain
from lumid.model.recipe import TrainRecipe, parse_recipe
from lumid.model.runs import build_model

RECIPE = """
name = "benchmark"
[model]
size = "{size}"
image_size = {image}
[optimizer]
steps = {steps}
batch_size = {batch}
warmup_steps = 1
spike_factor = 1000.0
[data]
where = "true"
threads = {threads}
[run]
log_every = 1000
checkpoint_every = 1000000
tensorboard = false
"""


class PlainMae(nn.Module):
    """The method over timm's modules as its paper tells it; parameters are called as lumid's, to take its weights."""

    def __init__(self, size: MaskedAutoencoder) -> None:
        super().__init__()
        shape, self.patch, self.visible = size.shape, size.patch_size, size.visible
        self.encoder = VisionTransformer(
            img_size=size.image_size, patch_size=self.patch, in_chans=size.in_chans, num_classes=0,
            embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads,
        )  # fmt: skip
        self.decoder_embed = nn.Linear(shape.width, shape.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.decoder_width))
        self.decoder_positions = nn.Parameter(torch.zeros_like(size.decoder_positions), requires_grad=False)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_blocks = nn.Sequential(
            *(Block(shape.decoder_width, shape.decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(shape.decoder_depth))  # type: ignore[arg-type]
        )  # fmt: skip
        self.decoder_norm = norm(shape.decoder_width)
        self.decoder_head = nn.Linear(shape.decoder_width, self.patch**2 * size.in_chans)
        self.encoder.pos_embed.requires_grad = False
        self.load_state_dict(size.state_dict())

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        tokens = self.encoder.patch_embed(images) + self.encoder.pos_embed[:, 1:]
        order = torch.argsort(noise, dim=1)
        back = torch.argsort(order, dim=1)
        kept = order[:, : self.visible, None]
        tokens = torch.gather(tokens, 1, kept.repeat(1, 1, tokens.shape[2]))
        first = self.encoder.cls_token + self.encoder.pos_embed[:, :1]
        tokens = self.encoder.blocks(torch.cat([first.repeat(len(tokens), 1, 1), tokens], 1))
        tokens = self.decoder_embed(self.encoder.norm(tokens))
        hidden = self.mask_token.repeat(len(tokens), back.shape[1] - self.visible, 1)
        whole = torch.cat([tokens[:, 1:], hidden.to(tokens.dtype)], 1)
        whole = torch.gather(whole, 1, back[:, :, None].repeat(1, 1, whole.shape[2]))
        tokens = torch.cat([tokens[:, :1], whole], 1) + self.decoder_positions
        predicted = self.decoder_head(self.decoder_norm(self.decoder_blocks(tokens)))[:, 1:]
        target = F.unfold(images, self.patch, stride=self.patch).mT
        channels = images.shape[1]  # unfold gives channels first
        target = target.unflatten(2, (channels, -1)).mT.flatten(2)
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6) ** 0.5
        mask = (back >= self.visible).float()
        return (((predicted.float() - target) ** 2).mean(2) * mask).sum() / mask.sum()


def recipe_of(given: argparse.Namespace, steps: int) -> TrainRecipe:
    """lumid's, of the size that was asked for."""
    text = RECIPE.format(size=given.size, image=given.image_size, steps=steps, batch=given.batch, threads=given.threads)
    return parse_recipe(text, "benchmark")


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Seconds of a step."""
    wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - began) / steps


def steps_alone(given: argparse.Namespace, device: torch.device) -> None:
    """Forward, backward and update of the same images, masks and weights."""
    recipe, parallel = recipe_of(given, 1000), Parallel(device=device)
    model = build_model(recipe).to(device)
    plain = PlainMae(model).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(given.batch, model.in_chans, given.image_size, given.image_size, generator=generator).to(
        device
    )
    noise = torch.rand(given.batch, model.patches, generator=generator).to(device)
    with torch.no_grad():
        ours, theirs = float(model(images[:2], noise[:2]).loss), float(plain(images[:2], noise[:2]))
    assert abs(ours - theirs) < 1e-3 * theirs, f"not the same model: {ours} and {theirs}"
    notes: list[str] = []
    wrapped = prepare(model, recipe.compute, parallel, given.batch, notes.append)
    fused, default = build_optimizer(model, recipe), torch.optim.AdamW(plain.parameters(), lr=0.0)

    def own() -> None:
        with autocast(recipe.compute, device):
            loss = wrapped(images, noise).loss
        loss.backward()
        fused.step()
        fused.zero_grad(set_to_none=True)

    def other() -> None:
        with autocast(recipe.compute, device):
            loss = plain(images, noise)
        loss.backward()
        default.step()
        default.zero_grad(set_to_none=True)

    ways: dict[str, Callable[[], None]] = {"lumid": own, "plain timm, eager": other}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for step in ways.values():
        timed(step, device, 3 if device.type == "cuda" else 1)
    for _ in range(given.rounds):
        for name, step in ways.items():
            found[name].append(timed(step, device, given.steps))
    peak = given.peak_tflops * 1e12 if given.peak_tflops else None
    peak = peak or (peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None)
    flops = training_flops(model)
    title = f"a step of {given.size}, {given.batch} images of {given.image_size}, {flops / 1e9:.1f} GFLOP an image"
    print(f"\n| {title} | ms | images/s | × plain | TFLOP/s | MFU |\n|---|---|---|---|---|---|")
    base = statistics.median(found["plain timm, eager"])
    for name, times in found.items():
        second = statistics.median(times)
        rate = given.batch / second
        share = f"{rate * flops / peak:.0%}" if peak else "–"
        print(
            f"| {name} | {1000 * second:,.1f} | {rate:,.1f} | {base / second:.2f} | {rate * flops / 1e12:.2f} | {share} |"
        )
    print("\n".join(notes))


def plain_loop(root: Path, given: argparse.Namespace, device: torch.device, *, bf16: bool) -> Iterator[float]:
    """Images a second of a straightforward loop, after every step from the third on."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    ways = transforms.Compose(
        [transforms.Grayscale(), transforms.RandomResizedCrop(given.image_size, (0.2, 1.0)),
         transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    )  # fmt: skip
    images = ImageFolder(str(root / "png"), ways)
    loader = DataLoader(
        images, given.batch, shuffle=True, num_workers=given.threads, drop_last=True, pin_memory=device.type == "cuda"
    )
    size = build_model(recipe_of(given, 1000))
    model = PlainMae(size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    seen, began = 0, 0.0
    while True:
        for batch, _ in loader:
            batch = batch.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model(batch, torch.rand(len(batch), size.patches, device=device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # what a loop prints
            if seen == 3 * given.batch:
                began = time.perf_counter()
            seen += given.batch
            if seen > 4 * given.batch:
                yield (seen - 4 * given.batch) / (time.perf_counter() - began)


def loops(given: argparse.Namespace, device: torch.device) -> None:
    """From the disk to updated weights."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, given.images, given.source)
        rows: dict[str, list[float]] = {}
        facts: list[dict[str, Any]] = []
        precisions = {"plain loop, bfloat16": True, "plain loop, float32": False}
        if device.type == "cpu":
            del precisions["plain loop, bfloat16"]
        for number in range(given.rounds):
            facts.append(lumid_loop(root, root / f"run-{number}", given, device))
            rows.setdefault("lumid pretrain", []).append(facts[-1]["images_per_s"])
            for name, bf16 in precisions.items():
                rates = plain_loop(root, given, device, bf16=bf16)
                for _ in range(given.steps):
                    rate = next(rates)
                rates.close()  # type: ignore[attr-defined]
                rows.setdefault(name, []).append(rate)
    title = f"the loop, {given.size}, batches of {given.batch}, {given.threads} threads or workers"
    print(f"\n| {title} | images/s | × lumid | waiting for data | MFU |\n|---|---|---|---|---|")
    ours = statistics.median(rows["lumid pretrain"])
    stall = statistics.median(one["stall_fraction"] for one in facts)
    mfu = facts[0]["mfu"]
    for name, rates_of in rows.items():
        rate = statistics.median(rates_of)
        told = (f"{stall:.2%}", "–" if mfu is None else f"{mfu:.0%}") if name == "lumid pretrain" else ("–", "–")
        print(f"| {name} | {rate:,.1f} | {rate / ours:.2f} | {told[0]} | {told[1]} |")


def lumid_loop(root: Path, run: Path, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """`lumid pretrain`: what its last step says of the fifty before it."""
    steps = WINDOW + given.steps  # the first are not among them: they warm up
    listener = Listener(lambda _: None, print)
    pretrain(root / "lumid", run, recipe_of(given, steps), Parallel(device=device), listener, lambda: False)
    last: dict[str, Any] = json.loads((run / METRICS).read_text().splitlines()[-1])
    return last


def write_images(root: Path, images: int, source: Path | None) -> None:
    """lumid's data set, and the same images as 8-bit PNG in a folder."""
    import cv2

    from benchmarks.stream import write
    from lumid.catalog.codecs import decode
    from lumid.catalog.shards import read_samples

    write(root, images, source, peers=False)
    folder = root / "png" / "CT"
    folder.mkdir(parents=True)
    for shard in sorted((root / "lumid/shards").iterdir()):
        for key, image, _ in read_samples(shard):
            cv2.imwrite(str(folder / f"{key}.png"), (decode(image, "jhc") / 16).clip(0, 255).astype("uint8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("step", "loop", "both"), default="both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="that are timed in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2_000, help="of the loop")
    parser.add_argument("--source", type=Path, help="a folder of DICOM with CT, for the loop")
    parser.add_argument("--peak-tflops", type=float, help="of a device that lumid does not know")
    given = parser.parse_args()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{device}, {name}; PyTorch {torch.__version__}")
    if given.part != "loop":
        steps_alone(given, device)
    if given.part != "step":
        loops(given, device)


if __name__ == "__main__":
    main()
