"""What travels between the parts: records, file formats, chat templates, batches."""
