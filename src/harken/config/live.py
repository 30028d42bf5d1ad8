"""Settings of the live chat in `harken ui --chat`."""

from harken.config.base import Config
from harken.config.shared import ChatConfig, ComputeConfig, Count, SamplingConfig


class LiveChatConfig(Config):
    """`harken ui --chat`: two models side by side, changed by `--chat-set`."""

    project: str = "Live chat"
    """Project that the votes belong to; made if it is not there."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, max_new_tokens=256)
    """How answers are drawn."""
    max_message: Count = 8000
    """Longest message of a person, characters."""
    max_answer: Count = 40_000
    """Longest answer that is shown, characters."""
    turns_a_minute: Count = 12
    """Messages that one person may send in a minute."""
    turns_a_day: Count = 500
    """Messages that one person may send in a day."""
    turns_at_once: Count = 16
    """Messages that are being answered at the same time, of all people."""
    chat: ChatConfig = ChatConfig()
    """How conversations become text, for models in this process."""
    compute: ComputeConfig = ComputeConfig()
    """Device and precision, for models in this process."""
