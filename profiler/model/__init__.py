"""What follows from a model's `config.json` and a GPU's datasheet."""
