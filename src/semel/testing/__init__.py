"""What authors of sinks test with: `semel.testing.contracts` tries a sink against everything its contract says."""
