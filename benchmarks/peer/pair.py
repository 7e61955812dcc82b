#!/usr/bin/env python3
"""The PyTorch side of benchmarks/compare: the same work as pair_bench, by public PyTorch operations.

    pair.py step fp32|lsq|vvtq BATCH     a training step of DeiT-T: loss, gradients, AdamW
    pair.py lsq ROWS COLUMNS             PyTorch's own fused learnable fake-quantization, both directions
    pair.py linear T K N                 fused fake-quantization of x and w, then the best float32 product
    pair.py images FOLDER                JPEG to a normalised 224 x 224 tensor: Pillow and torchvision

Answers every line on standard input with one timed round, as a JSON line. The first line says what it runs on
and how fast a float32 product is: below 100 GFLOP/s per AVX-512 core the comparison is void.
The quantizers are written from the formulas of docs/methods in the plain style of published code.
"""

import json
import os
import re
import resource
import sys
import time

THREADS = int(os.environ.get("LOWBIT_THREADS", "1"))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, str(THREADS))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(THREADS)
torch.set_flush_denormal(True)


class Lsq(nn.Module):
    """Esser et al. 2020, eqs. 1-3; the gradient of the scale as the paper's appendix writes it."""

    def __init__(self, bits, signed=True, scale=0.25):
        super().__init__()
        self.lo, self.hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        g = 1.0 / (x.numel() * self.hi) ** 0.5
        s = (self.scale - self.scale * g).detach() + self.scale * g
        v = torch.clamp(x / s, self.lo, self.hi)
        return ((torch.round(v) - v).detach() + v) * s


class Vvtq(nn.Module):
    """One scale per bit width, bit width and bounds as tensors: docs/methods/vvtq.md."""

    def __init__(self, bits, signed=True, scale=0.25):
        super().__init__()
        self.signed = signed
        self.bits = nn.Parameter(torch.tensor(float(bits)), requires_grad=False)
        self.scale = nn.Parameter(torch.full((7,), scale))

    def forward(self, x):
        n = torch.round(torch.clamp(self.bits, 2, 8))
        half = 2 ** (n - 1)
        lo, hi = (-half, half - 1) if self.signed else (torch.zeros(()), 2 * half - 1)
        g = 1.0 / (x.numel() ** 0.5 * hi)
        a = self.scale[int(n.item()) - 2]
        s = (a - a * g).detach() + a * g
        v = torch.minimum(torch.maximum(x / s, lo), hi)
        return (torch.round(v).detach() - v.detach() + v) * s


class Linear(nn.Linear):
    def __init__(self, k, n, quantizer=None, bits=4):
        super().__init__(k, n)
        self.q = quantizer(bits, scale=0.01) if quantizer else nn.Identity()

    def forward(self, x):
        return F.linear(x, self.q(self.weight), self.bias)


class Block(nn.Module):
    def __init__(self, width, heads, quantizer):
        super().__init__()
        slot = (lambda signed=True: quantizer(4, signed)) if quantizer else (lambda signed=True: nn.Identity())
        self.heads, self.fused = heads, quantizer is None
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = Linear(width, 3 * width, quantizer), Linear(width, width, quantizer)
        self.fc1, self.fc2 = Linear(width, 4 * width, quantizer), Linear(4 * width, width, quantizer)
        self.q_in, self.q_q, self.q_k, self.q_v = slot(), slot(), slot(), slot()
        self.q_probs, self.q_context, self.q_mlp, self.q_hidden = slot(False), slot(), slot(), slot()

    def attention(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.q_in(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = self.q_q(q) @ self.q_k(k).transpose(-2, -1) * (c // self.heads) ** -0.5
            y = self.q_probs(scores.softmax(-1)) @ self.q_v(v)
        return self.proj(self.q_context(y.transpose(1, 2).reshape(b, n, c)))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.q_hidden(F.gelu(self.fc1(self.q_mlp(self.norm2(x))))))


class DeitTiny(nn.Module):
    def __init__(self, quantizer=None, width=192, heads=3, depth=12):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, quantizer) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), Linear(width, 1000, quantizer, 8)
        edge = (lambda: quantizer(8, True, 0.02)) if quantizer else nn.Identity
        self.q_image, self.q_patch, self.q_head = edge(), edge(), edge()

    def forward(self, images):
        x = F.conv2d(self.q_image(images), self.q_patch(self.patch.weight), self.patch.bias, 16)
        x = torch.cat([self.cls.expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.q_head(self.norm(x)[:, 0]))


def training_step(variant, batch):
    model = DeitTiny({"fp32": None, "lsq": Lsq, "vvtq": Vvtq}[variant]).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    x, y = torch.randn(batch, 3, 224, 224), torch.arange(batch) % 1000

    def run():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run, 2, batch


def fused_quantizer(rows, columns):
    x = torch.randn(rows, columns, requires_grad=True)
    scale, zero = torch.tensor([0.25], requires_grad=True), torch.tensor([0.0], requires_grad=True)
    gy = torch.randn(rows, columns)

    def run():
        x.grad = scale.grad = zero.grad = None
        torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, -8, 7, 1.0).backward(gy)

    return run, 20, 1


def linear_forward(t, k, n):
    x, w, b = torch.randn(t, k), torch.randn(n, k), torch.randn(n)

    @torch.no_grad()
    def run():
        xq = torch.fake_quantize_per_tensor_affine(x, 0.25, 0, -8, 7)
        F.linear(xq, torch.fake_quantize_per_tensor_affine(w, 0.25, 0, -8, 7), b)

    return run, 20, 1


def images(folder):
    import glob
    import io

    from PIL import Image
    from torchvision import transforms

    paths = sorted(glob.glob(folder + "/train/**/*.[jJ][pP]*[gG]", recursive=True))[:100]
    if not paths:
        sys.exit(f"pair.py: no photographs in {folder}/train")
    files = [open(p, "rb").read() for p in paths]
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def run():
        for data in files:
            transform(Image.open(io.BytesIO(data)).convert("RGB"))

    return run, 1, len(files)


def work_of(a):
    kinds = {"step": training_step, "lsq": fused_quantizer, "linear": linear_forward, "images": images}
    return kinds[a[0]](*[int(s) if s.isdigit() else s for s in a[1:]])


def main():
    run, repeats, units = work_of(sys.argv[1:])
    a = torch.randn(1024, 1024)
    rate = 0
    for _ in range(5):
        t = time.process_time()
        a @ a
        rate = max(rate, 2e-9 * 1024**3 * THREADS / (time.process_time() - t))
    run(), run()
    build = torch.__config__.show()
    blas = re.findall(r"oneAPI Math Kernel Library Version [\d.]+|MKL-DNN v[\d.]+|BLAS_INFO=\w+", build)
    about = {"ready": "pytorch", "torch": torch.__version__, "blas": blas, "threads": torch.get_num_threads()}
    about.update(cpu=torch.backends.cpu.get_cpu_capability(), gflops=round(rate, 1))
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        wall, cpu = [], []
        for _ in range(repeats):
            t, c = time.perf_counter(), time.process_time()
            run()
            wall.append(time.perf_counter() - t)
            cpu.append(time.process_time() - c)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"wall": min(wall) / units, "cpu": min(cpu) / units, "peak_rss": peak}), flush=True)


if __name__ == "__main__":
    main()
