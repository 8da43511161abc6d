package main

import "github.com/twmb/franz-go/pkg/kgo"

func client() (*kgo.Client, error) {
	return kgo.NewClient(
		kgo.SeedBrokers("kafka:9092"),
		kgo.TransactionalID("stock-writer"),
		kgo.DefaultProduceTopic("stock"),
	)
}
