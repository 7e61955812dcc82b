#include "train/config/option_table.h"

#include <algorithm>
#include <string>
#include <vector>

namespace lowbit {
namespace {

using enum OptionGroup;
using enum OptionKind;

// clang-format off
constexpr OptionSpec kOptions[] = {
    // ---- Data
    {"data", data, text, kRunVerbs | kLabels, "", "DIR", "folder with one sub-folder of images per class below train/ and val/; a class_index.tsv (id<TAB>folder) in it fixes the class ids", {.source = "torchvision ImageFolder", .aliases = "data-dir data-path"}},
    {"train-split", data, text, kTrain | kLabels, "train", "NAME", "sub-folder of the training images", {.source = "timm", .rare = true}},
    {"val-split", data, text, kRunVerbs, "val", "NAME", "sub-folder of the validation images", {.source = "timm", .rare = true}},
    {"num-classes", data, integer, kRunVerbs | kBench | kLabels, "0", "N", "outputs of the model; 0: as many as class folders (or as the weights have)", {.source = "timm", .lo = 0, .hi = 1e6}},
    {"image-size", data, integer, kRunVerbs | kBench | kLabels, "0", "pixels", "side of the square input; 0: the model's own", {.source = "timm", .aliases = "img-size input-size", .lo = 0, .hi = 4096}},
    {"batch-size", data, integer, kRunVerbs | kBench, "128", "images", "images per step and process", {.source = "timm", .aliases = "per-device-train-batch-size", .lo = 1, .hi = 65536, .letter = 'b'}},
    {"eval-batch-size", data, integer, kTrain, "0", "images", "images per evaluation step; 0: as --batch-size", {.source = "Hugging Face", .aliases = "per-device-eval-batch-size", .lo = 0, .hi = 65536, .rare = true}},
    {"augment", data, text, kTrain, "crop", "KIND", "training pictures: crop (random resized crop), pad (reflect padding and one random offset), none (as in evaluation)", {.choices = "crop|pad|none"}},
    {"pad", data, integer, kTrain, "6", "pixels", "padding of --augment pad", {.lo = 0, .hi = 64, .rare = true}},
    {"scale", data, reals, kTrain, "0.08,1", "LO,HI", "area share of the random crop", {.source = "torchvision RandomResizedCrop", .lo = 0, .hi = 1, .rare = true}},
    {"ratio", data, reals, kTrain, "0.75,1.3333333333333333", "LO,HI", "width/height of the random crop", {.source = "torchvision RandomResizedCrop", .lo = 0.01, .hi = 100, .rare = true}},
    {"hflip", data, real, kTrain, "0.5", "share", "probability of a horizontal flip", {.source = "timm", .lo = 0, .hi = 1, .rare = true}},
    {"vflip", data, real, kTrain, "0", "share", "probability of a vertical flip", {.source = "timm", .lo = 0, .hi = 1, .rare = true}},
    {"aa", data, text, kTrain, "", "POLICY", "RandAugment, e.g. rand-m9-mstd0.5-inc1; empty: none", {.source = "Cubuk et al. 2020, timm", .aliases = "auto-augment"}},
    {"color-jitter", data, real, kTrain, "0", "strength", "brightness, contrast and saturation by 1 ± strength; ignored with --aa", {.source = "timm", .lo = 0, .hi = 10, .rare = true}},
    {"mixup", data, real, kTrain, "0", "alpha", "mix pairs of images, shares drawn from Beta(alpha, alpha); 0: off", {.source = "Zhang et al. 2018", .lo = 0, .hi = 1000}},
    {"cutmix", data, real, kTrain, "0", "alpha", "paste a box of another image, its area drawn from Beta(alpha, alpha); 0: off", {.source = "Yun et al. 2019", .lo = 0, .hi = 1000}},
    {"cutmix-minmax", data, reals, kTrain, "", "LO,HI", "draw the sides of the box from this range of the image's instead", {.source = "timm", .lo = 0, .hi = 1, .rare = true}},
    {"mixup-prob", data, real, kTrain, "1", "share", "probability that a batch is mixed", {.source = "timm", .lo = 0, .hi = 1, .rare = true}},
    {"mixup-switch-prob", data, real, kTrain, "0.5", "share", "probability of CutMix where both are on", {.source = "timm", .lo = 0, .hi = 1, .rare = true}},
    {"mixup-mode", data, text, kTrain, "batch", "MODE", "one draw for the batch, for each pair, for each image (elem), or as elem with half a batch (half)", {.source = "timm", .choices = "batch|pair|elem|half", .rare = true}},
    {"mixup-off-epoch", data, integer, kTrain, "0", "epoch", "no mixing from this epoch on; 0: to the end", {.source = "timm", .lo = 0, .hi = 1e6, .rare = true}},
    {"reprob", data, real, kTrain, "0", "share", "probability of random erasing", {.source = "Zhong et al. 2020, timm", .lo = 0, .hi = 1}},
    {"remode", data, text, kTrain, "pixel", "MODE", "random erasing fills with: const (zero), rand (one value a channel), pixel", {.source = "timm", .choices = "const|rand|pixel", .rare = true}},
    {"recount", data, integer, kTrain, "1", "boxes", "boxes of random erasing", {.source = "timm", .lo = 1, .hi = 100, .rare = true}},
    {"aug-repeats", data, integer, kTrain, "0", "N", "repeated augmentation: an image appears N times in a row, other crops each time; 0: off", {.source = "Hoffer et al. 2020, timm", .aliases = "num-aug-repeats", .lo = 0, .hi = 64, .rare = true}},
    {"soft-labels", data, text, kTrain, "", "PATH", "learn stored soft labels on stored crops: a folder of FKD's files, or a file of 'labels pack'", {.source = "Shen & Xing 2022", .aliases = "softlabel-path"}},
    {"crops", data, integer, kTrain, "4", "N", "with --soft-labels: crops of an image in one visit, which counts as so many epochs; --batch-size counts images of such a visit. Warm-up and the last N epochs take one crop of N times the images", {.source = "VVTQ", .aliases = "num-crops", .lo = 1, .hi = 500}},
    {"soft-label-type", data, text, kTrain, "auto", "TYPE", "auto (as stored) or marginal_renorm for stored top-k labels", {.source = "FKD", .choices = "auto|marginal_renorm", .rare = true}},
    {"label-type", data, text, kLabels, "marginal_smoothing_k5", "TYPE", "gen: what is kept of a teacher's probabilities: ori (all), hard, smoothing, marginal_smoothing_k5 (any k), marginal_renorm_k5", {.source = "FKD"}},
    {"label-crops", data, integer, kLabels, "500", "N", "gen: crops of an image", {.source = "FKD", .lo = 1, .hi = 1e5}},
    {"segment", data, integer, kLabels, "50", "N", "gen: crops that the teacher sees at once; no label depends on it", {.source = "FKD", .aliases = "num-seg", .lo = 1, .hi = 1e5}},
    {"label-scale", data, reals, kLabels, "0.08,0.936", "LO,HI", "gen: area share of a crop", {.source = "FKD", .lo = 0, .hi = 1, .rare = true}},
    {"temperature", data, real, kLabels, "1", "", "gen: divisor of the teacher's scores before the softmax", {.source = "FKD", .aliases = "temp", .lo = 1e-3, .hi = 1e3}},
    {"fp16", data, flag, kLabels, "off", "", "gen: coordinates and probabilities in half precision", {.source = "FKD", .aliases = "use-fp16"}},
    {"pack", data, flag, kLabels, "off", "", "gen: write one packed file instead of a folder of FKD's files"},
    {"reference-labels", data, text, kLabels, "", "PATH", "gen: take boxes and flips from these labels instead of drawing them, so that labels of several teachers can be averaged", {.source = "FKD", .aliases = "reference-path", .rare = true}},
    {"train-interpolation", data, text, kTrain, "bicubic", "FILTER", "resampling of training crops", {.source = "timm", .choices = "bilinear|bicubic|random", .rare = true}},
    {"interpolation", data, text, kRunVerbs | kLabels, "bicubic", "FILTER", "resampling of evaluation images; labels gen: of the crops that the teacher sees", {.source = "timm", .choices = "bilinear|bicubic"}},
    {"crop-pct", data, real, kRunVerbs, "0.875", "share", "evaluation: resize the shorter side to image-size/share, then centre crop; 0: no resize", {.source = "timm", .lo = 0, .hi = 1}},
    {"mean", data, reals, kRunVerbs | kLabels, "0.485,0.456,0.406", "R,G,B", "mean subtracted from pixels in [0, 1]", {.source = "ImageNet", .lo = 0, .hi = 1, .rare = true}},
    {"std", data, reals, kRunVerbs | kLabels, "0.229,0.224,0.225", "R,G,B", "divisor of pixels after the mean", {.source = "ImageNet", .lo = 1e-6, .hi = 1e6, .rare = true}},
    {"workers", data, integer, kRunVerbs | kLabels, "2", "threads", "loader threads; the data do not depend on their number", {.source = "timm", .aliases = "num-workers dataloader-num-workers", .lo = 0, .hi = 256, .letter = 'j'}},
    {"augment-device", data, text, kRunVerbs, "auto", "WHERE", "resize, flip and normalise where the run computes, from decoded pixels, or in the loader threads; auto: on a GPU where there is one. Same bits", {.choices = "auto|cpu|cuda", .rare = true}},
    {"limit-train", data, integer, kTrain, "0", "images", "use only so many training images, spread over all classes; 0: all", {.aliases = "max-train-samples", .lo = 0}},
    {"limit-val", data, integer, kRunVerbs, "0", "images", "use only so many validation images, spread over all classes; 0: all", {.aliases = "max-eval-samples", .lo = 0}},
    {"synthetic", data, flag, kRunVerbs, "off", "", "deterministic fake images instead of --data"},
    // ---- Model
    {"model", model, text, kRunVerbs | kBench | kLabels, "deit_tiny_patch16_224", "NAME", "architecture; 'help models' lists them", {.source = "timm", .aliases = "model-type model-name arch", .letter = 'm'}},
    {"weights", model, text, kRunVerbs | kLabels, "", "FILE", "start from these weights (.safetensors, .pth, .pt, .bin)", {.aliases = "finetune initial-checkpoint"}},
    {"allow-partial", model, flag, kRunVerbs, "off", "", "accept weights with missing, unexpected or mismatched names"},
    {"patch-size", model, integer, kRunVerbs | kBench | kLabels, "0", "pixels", "side of a patch; 0: the model's own", {.lo = 0, .hi = 512, .rare = true}},
    {"embed-dim", model, integer, kRunVerbs | kBench | kLabels, "0", "channels", "width; 0: the model's own", {.lo = 0, .hi = 65536, .rare = true}},
    {"depth", model, integer, kRunVerbs | kBench | kLabels, "0", "blocks", "number of blocks; 0: the model's own", {.lo = 0, .hi = 1024, .rare = true}},
    {"heads", model, integer, kRunVerbs | kBench | kLabels, "0", "N", "attention heads; 0: the model's own", {.lo = 0, .hi = 1024, .rare = true}},
    {"mlp-ratio", model, real, kRunVerbs | kBench | kLabels, "0", "ratio", "width of the MLP over the width of the model; 0: the model's own", {.lo = 0, .hi = 64, .rare = true}},
    {"drop", model, real, kTrain, "0", "share", "dropout", {.source = "timm", .lo = 0, .hi = 0.99, .rare = true}},
    {"drop-path", model, real, kTrain, "0", "share", "stochastic depth of the last block, linear from 0", {.source = "Huang et al. 2016; DeiT uses 0.1", .lo = 0, .hi = 0.99}},
    // ---- Quantization
    {"wbits", quantization, integer, kRunVerbs | kBench | kLabels, "32", "bits", "bits of weights; 1: signs (vvtq, ofq), 32: float", {.aliases = "weight-bits wq-bitw", .lo = 1, .hi = 8, .also = 32, .also_means = "float"}},
    {"abits", quantization, integer, kRunVerbs | kBench | kLabels, "32", "bits", "bits of activations; 1: signs (vvtq, ofq), 32: float", {.aliases = "act-bits aq-bitw", .lo = 1, .hi = 8, .also = 32, .also_means = "float"}},
    {"edge-bits", quantization, integer, kRunVerbs | kBench | kLabels, "8", "bits", "bits of the patch embedding and of the head; 32: float", {.source = "most papers", .lo = 2, .hi = 8, .also = 32, .also_means = "float"}},
    {"quantizer", quantization, text, kRunVerbs | kBench | kLabels, "vvtq", "METHOD", "vvtq (LSQ, head-room as published), lsq, lsq+ (with offset), ofq (StatsQ weights, scales per token), minmax (no training of scales)", {.source = "Esser et al. 2020; Bhalgat et al. 2020; Liu et al. 2023", .choices = "vvtq|lsq|lsq+|ofq|minmax"}},
    {"qk-reparam", quantization, flag, kRunVerbs | kBench | kLabels, "off", "", "query-key reparameterization: one fused matrix per head is quantized in place of the two projections", {.source = "OFQ, Liu et al. 2023"}},
    {"cga-range", quantization, real, kTrain, "0", "levels", "confidence-guided annealing: only weights so near a threshold move; a last phase from trained weights, e.g. 0.005 with --lr 1e-5 --sched constant --epochs 30; 0: off", {.source = "OFQ, Liu et al. 2023", .aliases = "boundary-range boundaryRange", .lo = 0, .hi = 0.5}},
    {"learn-bits", quantization, flag, kTrain, "off", "", "train the bit-width of every quantizer of vvtq, lsq and lsq+ (2 … 8) from the given one on", {.source = "VVTQ", .aliases = "mixpre", .rare = true}},
    {"bitops-scaler", quantization, real, kTrain, "0", "weight", "with --learn-bits: weight of the loss (bit operations over --bitops-budget)²; 0: widths are free", {.source = "VVTQ", .lo = 0, .hi = 1e9, .rare = true}},
    {"bitops-budget", quantization, real, kTrain, "0", "G", "bit operations of an image that cost nothing, in 1e9", {.source = "VVTQ", .aliases = "budget", .lo = 0, .hi = 1e9, .rare = true}},
    {"learn-bits-until", quantization, real, kTrain, "1", "share", "widths are trained up to this share of the epochs and then stay", {.source = "VVTQ", .aliases = "stage-ratio", .lo = 0, .hi = 1, .rare = true}},
    {"bin-regularizer", quantization, flag, kTrain, "off", "", "oscillation-aware bin regularization of LSQ weights, its weight rising from 0 after a quarter of the run to 0.01", {.source = "VVTQ", .aliases = "reg obr"}},
    {"bin-membership", quantization, text, kTrain, "published", "TEST", "which weights belong to a bin of --bin-regularizer: published (a comparison of floats that misses bins such as 3 and 5 at a share of scales) or exact", {.source = "VVTQ", .choices = "published|exact", .rare = true}},
    {"dampening", quantization, real, kTrain, "0", "weight", "weight of a loss that pulls weights to their levels, so that they oscillate less; 0: off", {.source = "Nagel et al. 2022", .aliases = "oscillations-dampen-weight", .lo = 0, .hi = 1e6, .rare = true}},
    {"dampening-final", quantization, real, kTrain, "0", "weight", "the weight of --dampening at the end, along half a cosine (--dampening 0 --dampening-final 0.1 begins with none); default: the same as at the start", {.source = "Nagel et al. 2022", .aliases = "oscillations-dampen-weight-final", .lo = 0, .hi = 1e6, .rare = true}},
    {"freeze-threshold", quantization, real, kTrain, "0", "frequency", "iterative freezing: a weight whose average of oscillations passes this stays on its level for the rest of the run, e.g. 0.02; 0: off", {.source = "Nagel et al. 2022", .aliases = "oscillations-freeze-threshold", .lo = 0, .hi = 1}},
    {"freeze-threshold-final", quantization, real, kTrain, "0", "frequency", "the threshold at the end, along half a cosine; default: the same as at the start", {.source = "Nagel et al. 2022", .aliases = "oscillations-freeze-threshold-final", .lo = 0, .hi = 1, .rare = true}},
    {"freeze-momentum", quantization, real, kTrain, "0.01", "", "weight of the newest step in the average of --freeze-threshold", {.source = "Nagel et al. 2022", .aliases = "oscillations-freeze-ema-momentum", .lo = 1e-6, .hi = 1, .rare = true}},
    {"use-offset", quantization, flag, kRunVerbs | kBench | kLabels, "off", "", "learned offset of activations", {.source = "VVTQ", .rare = true}},
    {"fixed-scale", quantization, flag, kTrain, "off", "", "do not train scales and offsets", {.source = "VVTQ", .rare = true}},
    {"calibration-images", quantization, integer, kRunVerbs, "128", "images", "images from which the first scales are taken where the weights have none: training images, for eval validation images", {.lo = 1, .hi = 1e6}},
    {"integer-products", quantization, flag, kRunVerbs | kBench | kLabels, "on", "", "products of quantized operands on integers; off: the float path, the oracle of the tests", {.rare = true}},
    {"backward", quantization, text, kTrain | kBench, "auto", "KIND", "gradients of quantized products: f32; int8x3, int8x2: the gradient cut into three (as exact as f32) or two bytes and products on integers; bf16x3, bf16x2, bf16: cut into so many bf16 numbers (errors 1e-7, 2e-6, 2e-3), for GPUs, slow on the CPU; auto: the fastest exact one here, f32 without AVX-512 VNNI, AMX or a GPU. A run keeps what it began with", {.choices = "auto|f32|int8x3|int8x2|bf16x3|bf16x2|bf16", .rare = true}},
    {"recompute", quantization, flag, kTrain | kBench, "off", "", "keep less for the backward and recompute it bit for bit: less memory, more time"},
    // ---- Optimisation
    {"epochs", optimisation, integer, kTrain, "100", "epochs", "passes over the training images", {.source = "timm", .aliases = "num-train-epochs", .lo = 0, .hi = 1e6}},
    {"opt", optimisation, text, kTrain, "adamw", "NAME", "optimizer; sgd has Nesterov momentum, momentum has plain momentum, adam adds the decay to the gradient", {.source = "timm", .choices = "adamw|adam|sgd|momentum", .aliases = "optim optimizer"}},
    {"lr", optimisation, real, kTrain, "5e-4", "rate", "learning rate", {.source = "DeiT at batch 512", .aliases = "learning-rate", .lo = 0, .hi = 1e3}},
    {"weight-decay", optimisation, real, kTrain, "0.05", "rate", "weight decay of matrices (not of biases, norms, tokens, scales)", {.source = "DeiT", .aliases = "wd", .lo = 0, .hi = 1e3}},
    {"decay-exempt", optimisation, text, kTrain, "", "PATTERNS", "parameters without weight decay besides biases, norms, tokens and scales: regular expressions over whole names, separated by commas, e.g. .*relative_position_bias_table", {.source = "Swin; timm no_weight_decay", .rare = true}},
    {"opt-betas", optimisation, reals, kTrain, "0.9,0.999", "B1,B2", "decay rates of Adam's moments", {.source = "Kingma & Ba 2015", .lo = 0, .hi = 0.999999999, .rare = true}},
    {"opt-eps", optimisation, real, kTrain, "1e-8", "", "epsilon of Adam, added after the root", {.source = "Kingma & Ba 2015", .aliases = "adam-epsilon", .lo = 0, .hi = 1, .rare = true}},
    {"momentum", optimisation, real, kTrain, "0.9", "", "momentum of sgd and momentum", {.source = "timm", .lo = 0, .hi = 0.999999, .rare = true}},
    {"clip-grad", optimisation, real, kTrain, "0", "", "gradient clipping threshold; 0: off", {.source = "timm", .aliases = "max-grad-norm", .lo = 0, .hi = 1e9}},
    {"clip-mode", optimisation, text, kTrain, "norm", "MODE", "norm (all gradients together), value, agc (per output unit, relative to its weights)", {.source = "timm", .choices = "norm|value|agc", .rare = true}},
    {"moments", optimisation, text, kTrain, "", "RUN", "begin with the optimizer's moments of this run (folder or last.state), e.g. with its weights for --cga-range; empty: with zeros", {.source = "OFQ --resume", .rare = true}},
    {"accumulate", optimisation, integer, kTrain, "1", "steps", "batches whose gradients are averaged into one update", {.aliases = "gradient-accumulation-steps", .lo = 1, .hi = 65536}},
    {"sched", optimisation, text, kTrain, "cosine", "KIND", "learning-rate schedule", {.source = "timm", .choices = "cosine|step|multistep|poly|tanh|plateau|constant", .aliases = "lr-scheduler-type scheduler"}},
    {"sched-per-step", optimisation, flag, kTrain, "off", "", "change the rate every step instead of every epoch", {.rare = true}},
    {"warmup-epochs", optimisation, integer, kTrain, "5", "epochs", "linear warm-up", {.source = "timm", .lo = 0, .hi = 1e6}},
    {"warmup-lr", optimisation, real, kTrain, "1e-6", "rate", "rate at the start of the warm-up", {.source = "timm", .lo = 0, .hi = 1e3}},
    {"warmup-mode", optimisation, text, kTrain, "replace", "MODE", "replace (ramp up to the curve's start) or scale (the curve times (t+1)/warm-up)", {.source = "timm replaces", .choices = "replace|scale", .rare = true}},
    {"min-lr", optimisation, real, kTrain, "1e-5", "rate", "lowest rate", {.source = "timm", .lo = 0, .hi = 1e3}},
    {"decay-epochs", optimisation, real, kTrain, "30", "epochs", "interval of --sched step", {.source = "timm", .lo = 1e-6, .hi = 1e6, .rare = true}},
    {"milestones", optimisation, reals, kTrain, "", "E,E,...", "epochs at which --sched multistep decays", {.source = "timm", .lo = 0, .hi = 1e6, .rare = true}},
    {"decay-rate", optimisation, real, kTrain, "0.1", "factor", "factor of step, multistep and plateau; exponent of poly", {.source = "timm", .aliases = "dr", .lo = 0, .hi = 1e3, .rare = true}},
    {"patience-epochs", optimisation, integer, kTrain, "10", "epochs", "epochs without improvement before --sched plateau decays", {.source = "timm", .lo = 0, .hi = 1e6, .rare = true}},
    {"cooldown-epochs", optimisation, integer, kTrain, "0", "epochs", "epochs at the lowest rate after the curve", {.source = "timm uses 10", .lo = 0, .hi = 1e6, .rare = true}},
    {"lr-cycle-mul", optimisation, real, kTrain, "1", "factor", "length of a cycle over that of the one before", {.source = "timm", .lo = 1, .hi = 100, .rare = true}},
    {"lr-cycle-limit", optimisation, integer, kTrain, "1", "cycles", "number of cycles", {.source = "timm", .lo = 1, .hi = 1000, .rare = true}},
    {"lr-noise", optimisation, reals, kTrain, "", "A[,B]", "from share A to share B of the run every rate is multiplied by 1 + noise", {.source = "timm", .lo = 0, .hi = 1, .rare = true}},
    {"lr-noise-pct", optimisation, real, kTrain, "0.67", "share", "bound of the noise", {.source = "timm", .lo = 1e-3, .hi = 10, .rare = true}},
    {"smoothing", optimisation, real, kTrain, "0.1", "share", "label smoothing", {.source = "Szegedy et al. 2016", .aliases = "label-smoothing label-smoothing-factor", .lo = 0, .hi = 0.999}},
    {"model-ema", optimisation, flag, kTrain, "off", "", "keep a running average of the weights; evaluations and best.safetensors are of the average", {.source = "timm"}},
    {"model-ema-decay", optimisation, real, kTrain, "0.9998", "", "decay of the running average per step", {.source = "timm", .lo = 0, .hi = 1, .rare = true}},
    {"max-steps", optimisation, integer, kTrain, "0", "steps", "stop after so many updates; 0: no limit", {.source = "Hugging Face", .lo = 0}},
    {"seed", optimisation, integer, kRunVerbs | kBench | kLabels, "0", "N", "fixes everything random", {.lo = 0, .hi = 9e15}},
    // ---- Distillation
    {"teacher", distillation, text, kTrain, "", "NAME", "architecture of the teacher; empty: no distillation", {.aliases = "teacher-model"}},
    {"teacher-weights", distillation, text, kTrain, "", "FILE", "weights of the teacher", {.aliases = "teacher-path teacher-checkpoint"}},
    {"distill", distillation, text, kTrain, "soft", "KIND", "soft (KL divergence) or hard (the teacher's arg-max as label), both weighed by --distill-alpha; ofq: see --kd-mode", {.source = "DeiT; OFQ", .choices = "soft|hard|ofq", .aliases = "distillation-type"}},
    {"kd-mode", distillation, integer, kTrain, "1", "MODE", "with --distill ofq: 0 the teacher's scores only; 1 its scores for the distillation head (or the only one), labels for the class head; 2 also the maps q·q and k·k of every attention layer; 3 also v·v", {.source = "OFQ", .aliases = "kd-hard-and-soft", .lo = 0, .hi = 3}},
    {"token-kd", distillation, text, kTrain, "none", "LAYERS", "with a teacher: also learn the tokens behind the last block or behind all", {.source = "OFQ", .choices = "none|last|all", .aliases = "kd-type", .rare = true}},
    {"kd-alpha", distillation, real, kTrain, "1", "weight", "weight of the maps of --kd-mode 2 and 3 and of --token-kd", {.source = "OFQ", .lo = 0, .hi = 1e6, .rare = true}},
    {"distill-alpha", distillation, real, kTrain, "0.5", "share", "weight of the teacher's term", {.source = "DeiT", .aliases = "distillation-alpha", .lo = 0, .hi = 1}},
    {"distill-temperature", distillation, real, kTrain, "1", "", "softmax temperature of both sides", {.source = "DeiT", .aliases = "distillation-tau", .lo = 1e-3, .hi = 1e3, .rare = true}},
    // ---- Distributed
    {"device", distributed, text, kRunVerbs | kBench | kLabels, "cpu", "NAME", "cpu, cuda, cuda:N, or auto"},
    {"graph", distributed, text, kTrain | kBench, "auto", "WHEN", "on a GPU, record a training step once as a CUDA graph and launch it as a whole: auto (where it can be; the log says why not), on (else an error), off. The same bits; no effect on the CPU", {.choices = "auto|on|off", .rare = true}},
    {"threads", distributed, integer, kAllVerbs, "0", "threads", "compute threads; 0: the affinity mask. No result depends on it", {.lo = 0, .hi = 1024}},
    {"precision", distributed, text, kRunVerbs | kBench | kLabels, "f32", "KIND", "operands of float products and convolutions: f32, or rounded to tf32 or bf16; bf16 also stores the residual stream, results of float layers and attention probabilities so. Sums, quantizers, statistics, gradients and parameters stay f32. Faster on CUDA; the CPU rounds the same way and is slower", {.choices = "f32|tf32|bf16"}},
    {"library-products", distributed, flag, kRunVerbs | kBench | kLabels, "on", "", "on CUDA float products by cuBLASLt and float convolutions by cuDNN; off: own kernels, with the bits of the CPU", {.rare = true}},
    {"deterministic", distributed, flag, kRunVerbs | kLabels, "on", "", "the same bits in every run; off allows faster kernels where there are any", {.rare = true}},
    {"global-batch", distributed, integer, kTrain, "0", "images", "images of an update over all processes: sets --accumulate, so that the same command gives the same result with any number of processes; 0: --batch-size x --accumulate x processes", {.lo = 0, .hi = 1e9}},
    {"rank-timeout", distributed, seconds, kRunVerbs, "10:00", "M:S", "how long a process may keep the others waiting before they leave with code 6", {.lo = 0.1, .transient = true}},
    {"rank", distributed, integer, kRunVerbs, "0", "N", "number of this process, with --world-size; default: what torchrun, mpirun or srun say", {.lo = 0, .rare = true, .transient = true}},
    {"world-size", distributed, integer, kRunVerbs, "0", "processes", "number of processes; 0: what the launcher says", {.lo = 0, .hi = 65536, .rare = true, .transient = true}},
    {"local-rank", distributed, integer, kRunVerbs, "-1", "N", "number of this process on its machine; -1: as --rank", {.lo = -1, .hi = 1024, .rare = true, .transient = true}},
    {"log-ranks", distributed, text, kTrain, "first", "WHICH", "all: rank 3 writes log.rank3.txt, …", {.choices = "first|all", .rare = true, .transient = true}},
    // ---- Output
    {"output", output, text, kTrain, "runs", "DIR", "parent of the run folders", {.source = "timm", .aliases = "output-dir", .letter = 'o'}},
    {"run", output, text, kTrain, "", "NAME", "name of the run folder, needed to continue a run; empty: a new one named after time and model", {.aliases = "experiment run-name"}},
    {"resume", output, text, kTrain, "auto", "WHAT", "auto (continue when the folder of --run holds a checkpoint), none, or another run folder (or its last.state) to continue from"},
    {"log-every", output, integer, kRunVerbs | kLabels, "50", "steps", "steps between full log lines", {.source = "timm", .aliases = "log-interval logging-steps print-freq", .lo = 1}},
    {"checkpoint-every", output, integer, kTrain, "0", "steps", "steps between checkpoints; 0: only after every epoch", {.aliases = "save-steps", .lo = 0}},
    {"keep", output, integer, kTrain, "1", "files", "how many checkpoint-<epoch> files to keep; 0: all", {.source = "timm --checkpoint-hist", .aliases = "checkpoint-hist save-total-limit", .lo = 0, .hi = 1e6}},
    {"track-oscillation", output, flag, kTrain, "on", "", "follow every quantized weight: how often its level changes and turns back, how near it is to a threshold", {.source = "Nagel et al. 2022", .aliases = "track-osc"}},
    {"tensorboard", output, flag, kTrain, "on", "", "write TensorBoard events"},
    {"json", output, flag, kEval | kBench, "off", "", "print the result as JSON", {.transient = true}},
    {"dtype", output, text, kConvert, "keep", "TYPE", "type of the written floating tensors", {.choices = "keep|f32|f16|bf16"}},
    {"quiet", output, flag, kRunVerbs | kLabels, "off", "", "only warnings, errors and results", {.transient = true}},
    {"verbose", output, flag, kRunVerbs | kInspect | kLabels, "off", "", "more of everything; inspect: range and mean of every tensor", {.letter = 'v', .transient = true}},
    {"filter", output, text, kInspect | kDiff | kBench, "", "TEXT", "only names that contain this text"},
    {"list", output, flag, kRepro, "off", "", "print every recipe with its published number, and stop", {.transient = true}},
    {"smoke", output, flag, kRepro, "off", "", "two steps of two images with the model at its real size: does the recipe run?", {.transient = true}},
    {"within", output, real, kRepro, "0.5", "points", "how far below the published number still counts as reproduced; two standard errors of the validation images come on top", {.lo = 0, .hi = 100, .transient = true}},
    {"spare", output, flag, kSensitivity, "off", "", "quantize everything but one group at a time; off: quantize one group at a time", {.transient = true}},
    {"by", output, text, kSensitivity, "module", "GROUP", "module (attention, MLP, … of each block), family (the same part of all blocks), slot (every quantizer)", {.choices = "module|family|slot", .transient = true}},
    {"result", output, text, kSensitivity, "", "FILE", "where to write the result as JSON; default: sensitivity.json in the run folder of --weights, else nowhere", {.transient = true}},
    {"file", output, text, kReport, "", "FILE", "the page to write; default: report.html in the run folder, or here for several runs"},
    {"seconds", output, real, kBench, "0.5", "s", "measuring time of each figure", {.lo = 0.01, .hi = 3600}},
    // ---- Debug
    {"config", debug, text, kAllVerbs, "", "FILE", "options from an INI file, or JSON when the name ends in .json (args.json of a run works)", {.letter = 'c', .transient = true}},
    {"set", debug, text, kAllVerbs, "", "KEY=VALUE", "one option in the syntax of the config file; repeatable", {.transient = true}},
    {"print-config", debug, flag, kAllVerbs, "off", "", "print an INI file that repeats this run, and stop", {.transient = true}},
    {"dry-run", debug, flag, kTrain, "off", "", "print model, parameters, operations, bit map, memory and estimated time, and stop", {.transient = true}},
    {"eval-only", debug, flag, kTrain, "off", "", "evaluate the weights once without training, and stop", {.aliases = "evaluate eval", .transient = true}},
    {"time-limit", debug, seconds, kTrain, "", "H:M:S", "checkpoint and exit with code 75 before this much time has passed; default: the end of the Slurm job", {.transient = true}},
    {"check-finite", debug, flag, kRunVerbs, "off", "", "check every operation's output and name the first that is not finite", {.rare = true, .transient = true}},
    {"report-memory", debug, flag, kTrain, "off", "", "with --dry-run: the activation memory kept by every operation", {.rare = true, .transient = true}},
    {"compat", debug, text, kTrain | kLabels, "none", "WHAT", "reference: follow the published program where it departs from what is meant; docs/methods lists the places", {.choices = "none|reference"}},
    {"help", debug, flag, kAllVerbs, "off", "", "this text", {.letter = 'h', .transient = true}},
    {"help-all", debug, flag, kAllVerbs, "off", "", "the same with rarely used options", {.transient = true}},
};

constexpr VerbSpec kVerbs[] = {
    {"train", kTrain, "train or fine-tune a model", "", 0, 0},
    {"eval", kEval, "evaluate a model on the validation images", "", 0, 0},
    {"inspect", kInspect, "list tensors and metadata of a weight file or run folder", "FILE", 1, 1},
    {"report", kReport, "make the page of a run again (RUN/report.html), or a page that compares several runs and results of eval", "RUN...", 1, 64},
    {"diff", kDiff, "compare two weight files or run folders; exit code 1 when they differ", "A B", 2, 2},
    {"convert", kConvert, "convert a weight file; the names say the formats (.safetensors, .pth, .pt, .bin, .npz, .npy)", "IN OUT", 2, 2},
    {"labels", kLabels, "soft-label files: gen OUT (a teacher writes them), info PATH, verify PATH, pack FOLDER OUT", "TASK PATH [OUT]", 2, 3},
    {"repro", kTrain | kRepro, "reproduce a published result: run a recipe and compare with its number; every option of train can be given too", "[NAME]", 0, 1},
    {"sensitivity", kEval | kSensitivity, "evaluate with one part of the model quantized, or spared, at a time", "", 0, 0},
    {"bench", kBench, "measure matrix products and training steps on this machine; WHAT: products, step or all", "[WHAT]", 0, 1},
};
// clang-format on

/// Calls f(word) for each word of a space-separated list.
template <class F>
void for_each_word(std::string_view list, F&& f) {
  while (!list.empty()) {
    const size_t end = std::min(list.find(' '), list.size());
    if (end) f(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
}

std::string dashed(std::string_view name) {
  std::string s(name);
  std::replace(s.begin(), s.end(), '_', '-');
  return s;
}

int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = int(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = int(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int replace = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replace, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

/// Distance that ranks a forgotten ending ("epo") before any typing error.
int name_distance(std::string_view typed, std::string_view known) {
  if (typed.size() >= 2 && known.starts_with(typed)) return 0;
  return edit_distance(typed, known);
}
int tolerated(std::string_view typed) {
  return std::max<int>(typed.size() > 3 ? 2 : 1, int(typed.size()) / 3);
}

}  // namespace

const char* group_title(OptionGroup g) {
  constexpr const char* titles[kOptionGroups] = {
      "Data", "Model", "Quantization", "Optimisation", "Distillation", "Distributed", "Output", "Debug"};
  return titles[size_t(g)];
}

std::span<const OptionSpec> option_table() { return kOptions; }
std::span<const VerbSpec> verb_table() { return kVerbs; }

const OptionSpec* find_option(std::string_view name, unsigned verbs) {
  const std::string wanted = dashed(name);
  for (const OptionSpec& o : kOptions) {
    if (!(o.verbs & verbs)) continue;
    bool hit = wanted == o.name;
    for_each_word(o.aliases, [&](std::string_view a) { hit = hit || a == wanted; });
    if (hit) return &o;
  }
  return nullptr;
}

const VerbSpec* find_verb(std::string_view name) {
  for (const VerbSpec& v : kVerbs)
    if (name == v.name) return &v;
  return nullptr;
}

std::string_view nearest_option(std::string_view name, unsigned verbs) {
  const std::string typed = dashed(name);
  std::string_view best;
  int least = tolerated(typed) + 1;
  const auto consider = [&](std::string_view known) {
    const int d = name_distance(typed, known);
    if (d < least) least = d, best = known;
  };
  for (const OptionSpec& o : kOptions) {
    if (!(o.verbs & verbs)) continue;
    consider(o.name);
    for_each_word(o.aliases, consider);
  }
  return best;
}

std::string_view nearest_verb(std::string_view name) {
  std::string_view best;
  int least = tolerated(name) + 1;
  for (const VerbSpec& v : kVerbs) {
    const int d = name_distance(name, v.name);
    if (d < least) least = d, best = v.name;
  }
  return best;
}

}  // namespace lowbit
