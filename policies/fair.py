"""Equal service for tenants: the virtual token counter."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView

WINDOW = 5  # requests over which a tenant's mean output is taken, as in the authors' artifact


class Fair(Policy):
    """Admit the request of the tenant that has been served least; tenants' lines are first come, first served.

    A tenant's counter grows by `prompt_weight` for each prompt token and `output_weight` for each output token, over
    the tenant's own weight. Outputs are charged on admission, as long as the tenant's last ones were, and set right at
    the end. Who was away does not save up: a tenant whose line was empty is lifted to the lowest counter of those who
    wait, or, if nobody does, to that of the last whose line ran empty. Requests without a tenant are one tenant's.

    Source: Sheng et al., Fairness in Serving Large Language Models (OSDI 2024): the virtual token counter (VTC), with
    its weighted form and its length prediction. Figure 3: two tenants that both have requests waiting get the same
    service, however many each of them sends, up to a bound that time does not move.
    """

    known_as = "VTC"
    prompt_weight: Annotated[float, Field(ge=0, description="of a prompt token")] = 1.0
    output_weight: Annotated[float, Field(gt=0, description="of an output token")] = 2.0
    expected_output_tokens: Annotated[float, Field(gt=0, description="of a tenant's first requests")] = 100.0
    weights: Annotated[
        dict[str, Annotated[float, Field(gt=0)]] | None, Field(description="shares of tenants by name; others have 1")
    ] = None

    def start(self, engine: EngineView) -> None:
        """Nobody has been served."""
        self._served: dict[Hashable, float] = {}
        self._waiting: dict[Hashable, set[str]] = {}
        self._last_away: Hashable = None  # whose line ran empty last
        self._charged: dict[str, float] = {}  # output tokens, by request
        self._mean_output: dict[Hashable, float] = {}

    def lane(self, request: RequestView) -> Hashable:
        """A line for each tenant; one that was empty is lifted, unless it returns from a preemption."""
        tenant = request.tenant
        if not self._waiting.get(tenant) and not request.num_preemptions:
            others = [self._served[name] for name, ids in self._waiting.items() if ids]
            least = min(others) if others else self._served.get(self._last_away, 0.0)
            self._served[tenant] = max(self._served.get(tenant, 0.0), least)
        self._waiting.setdefault(tenant, set()).add(request.request_id)
        return tenant

    def order(self, request: RequestView) -> float:
        """What its tenant has been served."""
        return self._served[request.tenant]

    def admitted(self, request: RequestView) -> None:
        """Charge for the prompt and the expected output; after a preemption nothing more."""
        self._leave_line(request)
        if request.request_id not in self._charged:
            expected = self._mean_output.get(request.tenant, self.expected_output_tokens)
            self._charged[request.request_id] = expected
            self._charge(request, self.prompt_weight * request.num_prompt_tokens + self.output_weight * expected)

    def finished(self, request: RequestView) -> None:
        """Set the charge right, and learn from it."""
        self._leave_line(request)  # where it is if it was preempted with its last token in flight
        output, expected = request.num_output_tokens, self._charged.pop(request.request_id)
        self._charge(request, self.output_weight * (output - expected))
        mean = self._mean_output.setdefault(request.tenant, output)
        self._mean_output[request.tenant] = mean + (output - mean) / WINDOW

    def _leave_line(self, request: RequestView) -> None:
        line = self._waiting[request.tenant]
        if request.request_id in line:
            line.remove(request.request_id)
            if not line:
                self._last_away = request.tenant

    def _charge(self, request: RequestView, service: float) -> None:
        weight = (self.weights or {}).get(request.tenant or "", 1.0)
        self._served[request.tenant] += service / weight
