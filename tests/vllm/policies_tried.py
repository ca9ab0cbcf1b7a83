"""Policies that decide by everything a policy may know, so that a number that is wrong in vLLM decides otherwise."""

from simbatch import Policy


class ShortestPrompt(Policy):
    def order(self, request):
        return request.num_prompt_tokens


class MostComputedGivesWay(Policy):
    """Tokens given out earlier in the step count."""

    def victim(self, running):
        return max(running, key=lambda request: (request.num_computed_tokens, request.num_output_tokens))


class MostBlocksGivesWay(Policy):
    def start(self, engine):
        self.engine = engine

    def order(self, request):
        return request.num_preemptions, -request.arrival_s

    def victim(self, running):
        return max(running, key=self.engine.blocks_freed_by)


class LastTurnsFirst(Policy):
    """What a client says of sessions."""

    def order(self, request):
        return request.has_next_turn, -request.turn, request.session_id


class Chunked(Policy):
    def seats(self, engine):
        return max(1, min(engine.max_num_seqs, engine.free_blocks // 2 + 1))

    def token_budget(self, engine):
        return max(1, engine.max_num_batched_tokens // (1 + engine.num_decoding))


class InTurns(Policy):
    """Lanes whose order changes while requests wait, by what has been admitted and what has ended."""

    def start(self, engine):
        self.served = {}

    def lane(self, request):
        return request.priority

    def order(self, request):
        return self.served.get(request.priority, 0)

    def admitted(self, request):
        tokens = request.num_prompt_tokens + request.num_computed_tokens + request.num_wanted_tokens
        self.served[request.priority] = self.served.get(request.priority, 0) + tokens

    def finished(self, request):
        self.served[request.priority] += request.num_output_tokens


class Impatient(Policy):
    """Turns away who finds a full queue, drops who has waited too long, and serves the last first."""

    longest_wait_s: float = 1.0
    most_waiting: int = 12

    def order(self, request):
        return -request.arrival_s

    def shed(self, request, engine):
        waited_s = engine.now_s - request.arrival_s
        return f"waited {waited_s:.3f} s" if waited_s > self.longest_wait_s else None

    def reject(self, request, engine):
        return f"{engine.num_waiting} are waiting" if engine.num_waiting > self.most_waiting else None


class Guessing(Policy):
    predictor_error: float = 0.5

    def order(self, request):
        return request.predicted_output_tokens

    def victim(self, running):
        return max(running, key=lambda request: request.predicted_output_tokens - request.num_output_tokens)


class Feedback(Policy):
    """As many seats as the latencies of those that ended allow."""

    def start(self, engine):
        self.num_seats = 4

    def seats(self, engine):
        return max(1, min(self.num_seats, engine.max_num_seqs))

    def finished(self, request):
        is_fast = (request.tpot_s or request.ttft_s) < 0.011 or request.e2el_s < 0.1
        self.num_seats = self.num_seats + 1 if is_fast else max(1, self.num_seats - 1)

    def admitted(self, request):
        self.num_seats -= request.num_preemptions > 0 and self.num_seats > 1


class Planned(Policy):
    def plan(self, running, waiting, engine):
        return super().plan(running, waiting, engine)


class Remembering(Policy):
    """Keeps the views of all that it has admitted, and decides by what they say later."""

    def start(self, engine):
        self.kept = []

    def admitted(self, request):
        self.kept.append(request)

    def seats(self, engine):
        shown = sum(
            view.num_computed_tokens
            + 3 * view.num_output_tokens
            + 5 * view.num_wanted_tokens
            + 7 * view.num_preemptions
            for view in self.kept
        )
        return 1 + shown % engine.max_num_seqs
