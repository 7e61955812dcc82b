#!/usr/bin/env python3
"""Training steps of PyTorch on a GPU, to stand beside `lowbit bench step --device cuda --json` in one run.

    gpu.py [--model deit_tiny|deit_small|swin_tiny] [--method float|lsq|ofq] [--batch 512] [--mode eager|compile]
           [--precision f32|tf32|bf16] [--seconds 5] [--device cuda]

One JSON line: images per second, peak memory of the caching allocator, kernel launches of a step (eager). lsq is W4A4,
ofq W2A2 (StatsQ weights, a step size per token); both are plain quantizers from the formulas, as published code has them. DeiT
quantizes the operands of attention's products too; Swin (from timm) only those of its linear layers, which is less
work than ours has. Best settings: fused AdamW, scaled_dot_product_attention in float models, bf16 by autocast.
--device cpu is for trying the script.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from pair import DeitTiny, Lsq


class StatsQ(nn.Module):
    """Weights of OFQ: levels between -1 and 1 times twice the mean magnitude of a row, no level at zero."""

    def __init__(self, bits, signed=True, scale=None):
        super().__init__()
        self.levels = 2 ** (bits - 1)

    def forward(self, w):
        s = 2 * w.detach().abs().mean(dim=-1, keepdim=True)
        v = torch.clamp(w / s, -1, 1 - 1e-6)
        return ((torch.floor(v * self.levels) + 0.5 - v * self.levels).detach() + v * self.levels) / self.levels * s


class TokenLsq(nn.Module):
    """Activations of OFQ: one step size per token, made for the first batch."""

    def __init__(self, bits, signed=True, scale=0.25):
        super().__init__()
        self.lo, self.hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        self.start = scale
        self.register_parameter("scale", None)

    def forward(self, x):
        if self.scale is None:
            self.scale = nn.Parameter(torch.full((x.shape[-2], 1), self.start, device=x.device))
        g = 1.0 / (x.numel() / x.shape[-2] * self.hi) ** 0.5
        s = (self.scale - self.scale * g).detach() + self.scale * g
        v = torch.clamp(x / s, self.lo, self.hi)
        return ((torch.round(v) - v).detach() + v) * s


class QuantLinear(nn.Module):
    def __init__(self, layer, weights, inputs, bits):
        super().__init__()
        self.layer, self.q, self.q_in = layer, weights(bits, scale=0.01), inputs(bits)

    def forward(self, x):
        return F.linear(self.q_in(x), self.q(self.layer.weight), self.layer.bias)


def quantize_linears(module, weights, inputs, bits):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, QuantLinear(child, weights, inputs, bits))
        else:
            quantize_linears(child, weights, inputs, bits)


def ofq_slot(bits, signed=True, scale=0.25):
    """DeiT's slots ask for a quantizer with a small scale where it is for weights."""
    return StatsQ(2) if scale == 0.01 else TokenLsq(2, signed, scale)


def build(model, method):
    if model.startswith("deit"):
        width, heads = {"deit_tiny": (192, 3), "deit_small": (384, 6)}[model]
        return DeitTiny({"float": None, "lsq": Lsq, "ofq": ofq_slot}[method], width, heads)
    try:
        import timm
    except ImportError:
        sys.exit("gpu.py: swin_tiny needs timm")
    m = timm.create_model("swin_tiny_patch4_window7_224", num_classes=1000)
    if method == "lsq":
        quantize_linears(m, Lsq, Lsq, 4)
    elif method == "ofq":
        quantize_linears(m, StatsQ, TokenLsq, 2)
    return m


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="deit_tiny", choices=["deit_tiny", "deit_small", "swin_tiny"])
    p.add_argument("--method", default="lsq", choices=["float", "lsq", "ofq"])
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--mode", default="eager", choices=["eager", "compile"])
    p.add_argument("--precision", default="f32", choices=["f32", "tf32", "bf16"])
    p.add_argument("--seconds", type=float, default=5)
    p.add_argument("--device", default="cuda")
    o = p.parse_args()
    cuda = o.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        sys.exit("gpu.py: torch finds no GPU")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = o.precision == "tf32"
    model = build(o.model, o.method).to(o.device).train()
    x, y = torch.randn(o.batch, 3, 224, 224, device=o.device), torch.arange(o.batch, device=o.device) % 1000
    with torch.no_grad():
        model(x)  # makes the step sizes per token
    forward = torch.compile(model) if o.mode == "compile" else model
    optimizer = torch.optim.AdamW([q for q in model.parameters() if q.requires_grad], lr=1e-5, fused=True)

    def step():
        optimizer.zero_grad()
        with torch.autocast(o.device.split(":")[0], torch.bfloat16, enabled=o.precision == "bf16"):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()

    def finish():
        if cuda:
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    finish()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    end = time.perf_counter() + o.seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        step()
        finish()
        times.append(time.perf_counter() - begin)
    times.sort()
    launches = None
    if cuda and o.mode == "eager":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            finish()
        launches = sum(e.count for e in profile.key_averages())
    print(json.dumps({
        "peer": f"pytorch {torch.__version__} {o.mode}", "model": o.model, "method": o.method, "batch": o.batch,
        "precision": o.precision, "train_img_per_s": round(o.batch / times[len(times) // 2], 2),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None, "launches": launches,
    }))


if __name__ == "__main__":
    main()
