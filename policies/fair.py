"""Equal service for tenants: the virtual token counter."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated

from pydantic import Field

from simbatch.policies.base import EngineView, Policy, RequestView


class Fair(Policy):
    """Admit the request of the tenant that has been served least; tenants' lines are first come, first served.

    A tenant's counter grows by `prompt_weight` for each prompt token and `output_weight` for each output token.
    Outputs are charged as expected on admission (the mean of those seen) and set right at the end. Who was away does
    not save up: a tenant that comes back starts from the lowest counter of those who wait. Source: Sheng et al.,
    Fairness in Serving Large Language Models (VTC, OSDI 2024; with the length prediction of its section 4.4): two
    tenants that both have requests waiting get the same service, however many each of them sends.
    """

    prompt_weight: Annotated[float, Field(ge=0, description="of a prompt token")] = 1.0
    output_weight: Annotated[float, Field(gt=0, description="of an output token")] = 2.0
    expected_output_tokens: Annotated[float, Field(gt=0, description="of a request, until some have ended")] = 100.0

    def start(self, engine: EngineView) -> None:
        """Nobody has been served."""
        self._served: dict[Hashable, float] = {}
        self._num_waiting: dict[Hashable, int] = {}
        self._charged: dict[str, float] = {}  # for outputs, by request
        self._num_finished = 0
        self._mean_output = self.expected_output_tokens

    def lane(self, request: RequestView) -> Hashable:
        """A line for each tenant; one that was empty is lifted to the others."""
        tenant = request.tenant
        if not self._num_waiting.get(tenant):
            waiting = [self._served[name] for name, n in self._num_waiting.items() if n]
            self._served[tenant] = max(self._served.get(tenant, 0.0), min(waiting, default=0.0))
        self._num_waiting[tenant] = self._num_waiting.get(tenant, 0) + 1
        return tenant

    def order(self, request: RequestView) -> float:
        """What its tenant has been served."""
        return self._served[request.tenant]

    def admitted(self, request: RequestView) -> None:
        """Charge for the prompt and the expected output; after a preemption nothing more."""
        self._num_waiting[request.tenant] -= 1
        if request.num_preemptions:
            return
        self._charged[request.request_id] = self.output_weight * self._mean_output
        self._served[request.tenant] += (
            self.prompt_weight * request.num_prompt_tokens + self._charged[request.request_id]
        )

    def finished(self, request: RequestView) -> None:
        """Set the charge right, and learn from it."""
        output = request.num_output_tokens
        self._served[request.tenant] += self.output_weight * output - self._charged.pop(request.request_id)
        self._num_finished += 1
        self._mean_output += (output - self._mean_output) / min(self._num_finished, 1000)
