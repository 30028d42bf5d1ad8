"""Settings of `harken report --datasheet`: what only the people who collected the data can tell."""

from typing import Annotated

from pydantic import Field

from harken.config.base import Config


class PayConfig(Config):
    """How judges were paid."""

    basis: str = ""
    """In words: by the hour, by task, volunteers, employees."""
    per_judgment: Annotated[float, Field(ge=0)] = 0.0
    """What one judgment pays, in `currency`; 0 if pay does not depend on it."""
    currency: str = ""
    """Such as EUR."""
    least_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """Warn when `per_judgment` and the median time make less than this an hour; 0 never warns."""


class DisclosureConfig(Config):
    """What a datasheet says that cannot be read from the store; what is left empty is named as a gap."""

    title: str = "Feedback"
    """Name of the data set."""
    description: str = ""
    """What the data are, in a sentence or two."""
    version: str = "1.0.0"
    """Version of the data set, as MAJOR.MINOR.PATCH."""
    license: str = ""
    """License of your own part, a name or an address; imported data keep theirs."""
    url: str = ""
    """Where the data set is described."""
    publisher: str = ""
    """Who answers for it."""
    contact: str = ""
    """Where people ask for their data or its erasure."""
    citation: str = ""
    """How to cite it."""
    recruitment: str = ""
    """How the people were found, and who could not take part."""
    pay: PayConfig = PayConfig()
    """How they were paid."""
    instructions: str = ""
    """What they were asked to do, in short."""
    intended_use: str = ""
    """What the data are for, and what they are not for."""
    known_gaps: str = ""
    """Who and what is missing, as far as you know."""
    least_group: Annotated[int, Field(ge=2)] = 5
    """Groups of fewer people are not counted (k-anonymity), and neither is what would give them away."""
