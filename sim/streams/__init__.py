"""What a benchmark client's streams tell of the engine behind them: its steps, and whether they can be told at all."""
