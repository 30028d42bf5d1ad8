"""Language models: the only code that imports transformers and peft."""
