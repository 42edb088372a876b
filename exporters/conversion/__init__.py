"""The same model in another form: float16, int8 with corrected biases, pixels as input."""
