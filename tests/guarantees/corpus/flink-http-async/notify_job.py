from pyflink.common import WatermarkStrategy
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import CheckpointingMode, StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import KafkaSource

import requests

env = StreamExecutionEnvironment.get_execution_environment()
env.enable_checkpointing(10000, CheckpointingMode.EXACTLY_ONCE)
source = (
    KafkaSource.builder()
    .set_bootstrap_servers("kafka:9092")
    .set_topics("signups")
    .set_group_id("welcome")
    .set_property("isolation.level", "read_committed")
    .set_value_only_deserializer(SimpleStringSchema())
    .build()
)
stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "signups")
stream.map(lambda body: requests.post("https://mail.example.com/welcome", data=body).status_code)
env.execute("welcome-job")
