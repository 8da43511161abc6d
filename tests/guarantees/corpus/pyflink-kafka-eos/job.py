from pyflink.common import WatermarkStrategy
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import KafkaRecordSerializationSchema, KafkaSink, KafkaSource

env = StreamExecutionEnvironment.get_execution_environment()
env.enable_checkpointing(30000)
source = (
    KafkaSource.builder()
    .set_bootstrap_servers("kafka:9092")
    .set_topics("drafts")
    .set_group_id("publish")
    .set_property("isolation.level", "read_committed")
    .set_value_only_deserializer(SimpleStringSchema())
    .build()
)
serializer = (
    KafkaRecordSerializationSchema.builder().set_topic("published").set_value_serialization_schema(SimpleStringSchema()).build()
)
sink = (
    KafkaSink.builder()
    .set_bootstrap_servers("kafka:9092")
    .set_record_serializer(serializer)
    .set_delivery_guarantee(DeliveryGuarantee.EXACTLY_ONCE)
    .set_transactional_id_prefix("publish")
    .set_property("transaction.timeout.ms", "600000")
    .build()
)
env.from_source(source, WatermarkStrategy.no_watermarks(), "drafts").map(str.upper).sink_to(sink)
env.execute("publish-job")
