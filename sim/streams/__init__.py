"""What a benchmark client's streams tell of the engine behind them: its steps, and whether they can be told at all."""

from simbatch.sim.streams.batches import Batches, batches_of, infer_budget
from simbatch.sim.streams.judge import Judgement, judge
from simbatch.sim.streams.steps import Steps, rebuild_steps
from simbatch.sim.streams.streams import Streams

__all__ = ["Batches", "Judgement", "Steps", "Streams", "batches_of", "infer_budget", "judge", "rebuild_steps"]
