"""From text to batches: documents (`corpus`), tokens (`tokenizer`, `prepare`), the batch of a step (`batches`)."""
