consumer.subscribe(List.of("sales"));
records.forEach(report::add);
consumer.commitSync();
