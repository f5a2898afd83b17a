"""What is learned: a record to arrays on the host, a batch to sums on the device."""
