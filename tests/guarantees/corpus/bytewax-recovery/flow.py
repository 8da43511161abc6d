from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow

flow = Dataflow("wax")
stream = kop.input("in", flow, brokers=["kafka:9092"], topics=["candles"])
lit = op.map("light", stream.oks, lambda m: KafkaSinkMessage(m.key, m.value.upper()))
kop.output("out", lit, brokers=["kafka:9092"], topic="lit-candles")
