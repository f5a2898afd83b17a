"""From the keys of an objective to what becomes of its texts."""

from jaxlm.config.objectives import Bart, Denoising, SpanCorruption, Ul2
from jaxlm.data import corruptions
from jaxlm.data.bart import Noise
from jaxlm.data.corruptions import Corruption
from jaxlm.data.ul2 import Denoiser
from jaxlm.text.tokenizer import Tokenizer


def corruption(chosen: Denoising, tokenizer: Tokenizer) -> Corruption:
    """That of an objective. Raises ConfigError for a token that is not there."""
    if isinstance(chosen, SpanCorruption):
        return corruptions.span_corruption(tokenizer, rate=chosen.rate, mean_span=chosen.span)
    if isinstance(chosen, Bart):
        noise = Noise(chosen.infill, chosen.permute, chosen.mask, chosen.delete, chosen.rotate)
        return corruptions.bart(tokenizer, noise=noise)
    if isinstance(chosen, Ul2):
        mixed = [Denoiser(each.mode, each.rate, each.span) for each in chosen.denoisers]
        named = {"R": chosen.modes.R, "S": chosen.modes.S, "X": chosen.modes.X}
        modes = {mode: name for mode, name in named.items() if name is not None}
        return corruptions.ul2(tokenizer, denoisers=mixed, modes=modes)
    return corruptions.prefix_lm()
