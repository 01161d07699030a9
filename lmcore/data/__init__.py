"""The data pipeline: documents (`corpus`), tokens (`tokenizer`, `prepare`), the batch of a step (`batches`)."""
