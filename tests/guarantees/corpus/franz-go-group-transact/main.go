package main

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	sess, err := kgo.NewGroupTransactSession(
		kgo.SeedBrokers("kafka:9092"),
		kgo.ConsumerGroup("geo"),
		kgo.ConsumeTopics("pings"),
		kgo.TransactionalID("geo-0"),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.RequireStableFetchOffsets(),
		kgo.DefaultProduceTopic("cells"),
	)
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	for {
		fetches := sess.PollFetches(ctx)
		if err := sess.Begin(); err != nil {
			panic(err)
		}
		e := kgo.AbortingFirstErrPromise(sess.Client())
		fetches.EachRecord(func(r *kgo.Record) {
			sess.Produce(ctx, kgo.SliceRecord(cell(r.Value)), e.Promise())
		})
		if _, err := sess.End(ctx, e.Err() == nil); err != nil {
			panic(err)
		}
	}
}
