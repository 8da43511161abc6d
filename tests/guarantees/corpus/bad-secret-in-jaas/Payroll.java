consumer.subscribe(List.of("salaries"));
records.forEach(payroll::pay);
consumer.commitSync();
