"""Settings: Kafka's names, and errors that name what was wrong."""

from __future__ import annotations

import pytest

from semel.broker.config import Config
from semel.errors import UsageError


def test_settings_are_given_by_kafkas_names() -> None:
    """As `--set key=value` or as a mapping; what is not given has its default."""
    config = Config.parse(["num.partitions=4", " durability = os", "auto.create.topics.enable=FALSE"])
    assert (config.num_partitions, config.durability, config.auto_create_topics_enable) == (4, "os", False)
    assert Config.parse({"num.partitions": "4"}).num_partitions == 4
    assert Config.parse() == Config()
    assert Config.parse().described()["auto.create.topics.enable"] == "true"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("num.partitons=4", "num.partitons"),
        ("num.partitions", "num.partitions"),
        ("num.partitions=many", "num.partitions=many"),
        ("num.partitions=0", "num.partitions=0"),
        ("auto.create.topics.enable=yes", "auto.create.topics.enable=yes"),
        ("durability=never", "durability=never"),
        ("group.min.session.timeout.ms=9999999", "group.min.session.timeout.ms=9999999"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, said: str) -> None:
    """A UsageError that shows the setting."""
    with pytest.raises(UsageError) as caught:
        Config.parse([setting])
    assert said in str(caught.value)
