"""What a lone engine and one of a cluster are put together from alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simbatch.sim.cost.host import FrontEndTimes
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.prefix_keys import PrefixKeys

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestSource


def front_end_of(config: EngineConfig) -> FrontEndTimes | None:
    """The front end's times, where it does more than add the network's: None if requests pass it at once."""
    times = config.front_end or FrontEndTimes()
    has_limits = config.max_num_queued_reqs is not None or config.max_num_queued_tokens is not None
    if has_limits or times.per_request_ps or times.per_prompt_token_ps or times.per_chunk_ps:
        return times
    return None


def prefix_keys(configs: Sequence[EngineConfig], source: RequestSource) -> PrefixKeys | None:
    """How the blocks of prompts get their names; None where no engine shares any. All have one block size."""
    if source.hash_block_tokens and any(config.enable_prefix_caching for config in configs):
        return PrefixKeys(source.hash_block_tokens, configs[0].block_size)
    return None
