kafka-topics.sh --bootstrap-server kafka:9092 --create --topic balances --partitions 12 --replication-factor 3 --config min.insync.replicas=1
