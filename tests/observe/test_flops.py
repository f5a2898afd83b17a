"""FLOPs by the formula that is printed, against the peak of one device."""

import pytest

from jaxlm.observe.flops import PEAKS, flops_per_token, mfu, peak_flops


def test_frozen_parameters_cost_no_gradient_of_their_own():
    shape = {"seen": 0, "heads": 1, "head_dim": 1}
    assert flops_per_token(trained=10, frozen=0, **shape) == 60
    assert flops_per_token(trained=0, frozen=10, **shape) == 40
    assert flops_per_token(trained=0, frozen=0, below=10, **shape) == 20


def test_layers_that_no_gradient_comes_down_to_are_computed_once():
    shape = {"trained": 0, "frozen": 0, "heads": 2, "head_dim": 4}
    whole, below = (flops_per_token(seen=24, seen_below=n, **shape) for n in (0, 24))
    assert whole == 3 * below


def test_attention_is_the_causal_half_of_its_two_products():
    layers, length, heads, head_dim = 2, 8, 3, 4
    per_pair = 2 * 2 * heads * head_dim  # scores and values, a multiplication and an addition each
    forward_and_backward = 3 * layers * length**2 / 2 * per_pair
    seen = layers * length / 2
    found = flops_per_token(trained=0, frozen=0, seen=seen, heads=heads, head_dim=head_dim)
    assert found * length == forward_and_backward


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_peaks_are_found_by_the_names_that_jax_gives(kind, tera):
    assert peak_flops(kind) == tera * 1e12


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "NVIDIA RTX A1000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "TPU v9",
    ],
)
def test_there_is_no_peak_for_what_is_not_known(kind):
    assert peak_flops(kind) is None
    assert mfu(1e6, 1e9, peak_flops(kind), 1) is None


def test_no_row_of_the_table_hides_a_later_one():
    for words, peak in PEAKS:
        assert peak_flops(f"NVIDIA {words}") == peak


def test_a_run_at_the_peak_of_all_its_devices_has_a_utilization_of_one():
    peak = peak_flops("NVIDIA H100 80GB HBM3")
    assert peak is not None
    assert mfu(8 * peak / 6e9, 6e9, peak, 8) == pytest.approx(1.0)
