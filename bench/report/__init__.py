"""What becomes of the samples: tables, targets."""
