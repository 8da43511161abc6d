from quixstreams import Application

app = Application(broker_address="kafka:9092", consumer_group="dedupe")
source = app.topic("inbox-raw")
target = app.topic("inbox-clean")
sdf = app.dataframe(source)
sdf = sdf.filter(lambda m: m["ok"])
sdf.to_topic(target)
app.run()
