from quixstreams import Application
from quixstreams.sinks.community.postgresql import PostgreSQLSink

app = Application(broker_address="kafka:9092", consumer_group="to-pg", processing_guarantee="exactly-once")
sink = PostgreSQLSink(host="db", port=5432, dbname="app", user="app", password="", table_name="readings_pg")
sdf = app.dataframe(app.topic("readings"))
sdf.sink(sink)
app.run()
