"""The lecture, whole: model, tokenizer, sampling, data, loss, optimizer. Read first."""
