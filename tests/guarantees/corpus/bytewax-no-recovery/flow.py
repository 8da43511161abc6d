from bytewax import operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow

flow = Dataflow("bare")
stream = kop.input("in", flow, brokers=["kafka:9092"], topics=["pebbles"])
op_out = op.map("m", stream.oks, lambda m: KafkaSinkMessage(m.key, m.value))
kop.output("out", op_out, brokers=["kafka:9092"], topic="stones")
