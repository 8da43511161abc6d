from quixstreams import Application, State

app = Application(broker_address="kafka:9092", consumer_group="counts", processing_guarantee="exactly-once")
source = app.topic("taps-in", value_deserializer="json")
target = app.topic("tap-counts", value_serializer="json")


def count(tap: dict, state: State) -> dict:
    n = state.get("n", 0) + 1
    state.set("n", n)
    return {"n": n}


app.dataframe(source).apply(count, stateful=True).to_topic(target)
app.run()
