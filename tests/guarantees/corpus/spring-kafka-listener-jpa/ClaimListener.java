@KafkaListener(topics = "claims-in")
@Transactional("transactionManager")
public void on(Claim claim) {
    claims.save(new ClaimRow(claim));
}
