"""Model FLOPs, the peak of a device, and what share of it a run uses.

Everything here is a function of numbers. The convention is printed with every figure, because the
other one in use (attention counted whole) reads 7 to 12 % higher at 8k tokens.
"""

import re

FORMULA = (
    "6N + 12 x layers x keys x heads x head_dim per token, forward and backward: N = parameters "
    "that multiply (head in, embedding lookup out; frozen ones count 4, not 6, 2 below all that "
    "trains, where attention is forward alone), keys = half the length where attention is causal, "
    "else all, recomputation not counted; of an encoder-decoder the mean of source and target"
)

_TERA = 1e12

PEAKS: tuple[tuple[str, float], ...] = (
    ("TPU7x", 1153.5 * _TERA),  # cloud.google.com/tpu/docs/tpu7x: 2307 per chip of two devices
    ("TPU v6 lite", 918 * _TERA),  # cloud.google.com/tpu/docs/v6e
    ("TPU v6e", 918 * _TERA),  # the same chip, as newer runtimes name it
    ("TPU v5p", 459 * _TERA),  # cloud.google.com/tpu/docs/v5p
    ("TPU v5 lite", 197 * _TERA),  # cloud.google.com/tpu/docs/v5e
    ("TPU v5e", 197 * _TERA),  # the same chip, as newer runtimes name it
    ("TPU v5", 459 * _TERA),  # how jax names v5p; after `TPU v5 lite`, which it is a part of
    ("TPU v4 lite", 138 * _TERA),  # Jouppi et al. 2021, table 1 (v4i)
    ("TPU v4", 275 * _TERA),  # cloud.google.com/tpu/docs/v4
    ("GB200", 2500 * _TERA),  # GB200 NVL72 datasheet, 360 PFLOP/s sparse over 72 GPUs, halved
    ("B200", 2250 * _TERA),  # HGX B200 datasheet, 36 PFLOP/s sparse over 8 GPUs, halved
    ("H200 NVL", 835.5 * _TERA),  # H200 datasheet, 1671 sparse, halved
    ("H200", 989.5 * _TERA),  # H200 datasheet, 1979 sparse, halved
    ("H100 PCIe", 756.5 * _TERA),  # H100 datasheet, PCIe column, 1513 sparse, halved
    ("H100 NVL", 835.5 * _TERA),  # H100 datasheet, NVL column, 1671 sparse, halved
    ("H100", 989.5 * _TERA),  # H100 datasheet, SXM column, 1979 sparse, halved
    ("GH200", 989.5 * _TERA),  # GH200 datasheet: the same chip as H100 SXM
    ("A100", 312 * _TERA),  # A100 datasheet
    ("A10G", 70 * _TERA),  # AWS G5: half of the A10's tensor rate
    ("A10", 125 * _TERA),  # A10 datasheet
    ("L40S", 362 * _TERA),  # L40S datasheet, 733 sparse
    ("L40", 181 * _TERA),  # L40 datasheet, 362 sparse, halved
    ("L4", 121 * _TERA),  # L4 datasheet, 242 sparse, halved
    ("RTX 5090", 209.5 * _TERA),  # RTX Blackwell whitepaper, table 2, FP32 accumulate
    ("RTX 4090", 165.2 * _TERA),  # RTX Ada whitepaper, table 2, FP32 accumulate
    ("RTX 3090", 71 * _TERA),  # RTX Ampere whitepaper, table 3, FP32 accumulate
)
"""Words of jax's `device_kind` -> dense bfloat16 FLOP/s of one jax device; the first that fits."""

_PART_OF_ONE = re.compile(r"\b(laptop|max-q|mig|vgpu)\b", re.IGNORECASE)


def flops_per_token(
    *,
    trained: int,
    frozen: int,
    seen: float,
    heads: int,
    head_dim: int,
    below: int = 0,
    seen_below: float = 0,
) -> int:
    """Model FLOPs per token of one update, by FORMULA (Chowdhery et al. 2022, appendix B).

    trained, frozen: parameters that multiply. The embedding's lookup does not; a tied embedding
    counts once, as the head. A frozen one costs no gradient of its own: 2 forward, 2 to the input.
    seen: keys that a token looks at, over all layers. below, seen_below: those of them that no
    gradient comes down to: forward alone.
    """
    attention = 4 * (3 * seen - 2 * seen_below) * heads * head_dim
    return 6 * trained + 4 * frozen + 2 * below + round(attention)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by jax's name for it.

    None for a CPU, an unknown device, and a slice or a throttled kind of a known one.
    """
    if _PART_OF_ONE.search(device_kind):
        return None
    for words, peak in PEAKS:
        if re.search(rf"\b{re.escape(words)}\b", device_kind, re.IGNORECASE):
            return peak
    return None


def mfu(tokens_per_second: float, flops: float, peak: float | None, devices: int) -> float | None:
    """Model FLOP utilization, 0 to 1; None where the peak is unknown.

    tokens_per_second: over all devices; flops: per token; peak: of one device. Against the bfloat16
    peak in every dtype, so that figures compare.
    """
    return None if peak is None else tokens_per_second * flops / (peak * devices)
