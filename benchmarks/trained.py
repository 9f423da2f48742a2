"""A trained network and its images, by the options that name them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import safetensors.torch
from machine import ROOT
from torch import nn

import rlal_fast as rf
from rlal_fast import data


def add_options(parser: argparse.ArgumentParser) -> None:
    """--arch, --weights and --data-dir."""
    default = ROOT / "benchmarks" / "networks" / "resnet20-cifar10jpeg.safetensors"
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--weights", type=Path, default=default)
    parser.add_argument("--data-dir", required=True, help="an image folder")


def load(args: argparse.Namespace, **options: Any) -> tuple[nn.Module, data.ImageData]:
    """The network in eval mode, and the images; `options` are those of `data.load`."""
    images = data.load("imagefolder", args.data_dir, **options)
    model = rf.models.create(args.arch, images.num_classes).eval()
    model.load_state_dict(safetensors.torch.load_file(args.weights))
    return model, images
