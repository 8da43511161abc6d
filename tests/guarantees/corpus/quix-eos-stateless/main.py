from quixstreams import Application

app = Application(
    broker_address="kafka:9092",
    consumer_group="uppercase",
    processing_guarantee="exactly-once",
    auto_offset_reset="earliest",
    commit_interval=2.0,
)
source = app.topic("words", value_deserializer="str")
target = app.topic("shouts", value_serializer="str")
app.dataframe(source).apply(str.upper).to_topic(target)

if __name__ == "__main__":
    app.run()
