"""The labels of a run and what they weigh, known before it begins."""

from jaxlm.config.objectives import Labels
from jaxlm.config.schema import RunConfig
from jaxlm.data import labeled


def counted(config: RunConfig) -> RunConfig:
    """The configuration with the labels of the training data where it names none, and numbers for
    balanced class_weights; else as it is.

    What is held out by a share has no part in the weights. Raises DataError for what cannot be
    read, and where every label is the same.
    """
    chosen, data = config.objective, config.data
    if not isinstance(chosen, Labels):
        return config
    if not chosen.labels:
        chosen = chosen.labeled(labeled.names(data.train, chosen))
    if chosen.class_weights == "balanced":
        share = data.validation if isinstance(data.validation, float) else 0.0
        found = labeled.count(data.train, chosen, share)
        weights = labeled.balanced(found, "objective.class_weights")
        chosen = chosen.model_copy(update={"class_weights": weights})
    return config.model_copy(update={"objective": chosen})
