"""A client for the tests, on the same generated stubs as the examples."""

from __future__ import annotations

from types import TracebackType

import wire

from recoup.v1 import (
    definition_pb2,
    execution_pb2,
    execution_service_pb2,
    execution_service_pb2_grpc,
    failure_service_pb2,
    failure_service_pb2_grpc,
    worker_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

from processes import LIMIT_S

#: The first two steps of the order workflow, with short waits.
WORKFLOW = """
name: short_order
defaults:
  queue: orders
  retry: { constant: { interval: 50ms }, jitter: 0, max_attempts: 4 }
steps:
  - id: reserve
    task: { type: stock.reserve }
    compensate:
      task: { type: stock.release }
  - id: charge
    task: { type: payment.charge, heartbeat: 5s }
    retry:
      constant: { interval: 50ms }
      jitter: 0
      max_attempts: 4
      non_retryable_error_types: [payment.card_declined]
"""


class Client:
    """Registers workflows, starts and awaits executions, and reads subscriptions."""

    def __init__(self, address: str) -> None:
        self._channel = wire.connect(address)
        self.executions = execution_service_pb2_grpc.ExecutionServiceStub(self._channel)
        self.failures = failure_service_pb2_grpc.FailureServiceStub(self._channel)
        self.worker = worker_service_pb2_grpc.WorkerServiceStub(self._channel)
        self.workflows = workflow_service_pb2_grpc.WorkflowServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def register(self, text: str = WORKFLOW) -> None:
        source = definition_pb2.DefinitionSource(text=text)
        request = workflow_service_pb2.RegisterWorkflowRequest(source=source)
        assert self.workflows.RegisterWorkflow(request, timeout=LIMIT_S).created

    def start(self, key: str, scenario: str, amount: int = 20, *, workflow: str = "short_order") -> str:
        """Starts an order and returns the execution's id."""
        spec = execution_pb2.ExecutionSpec(
            workflow=workflow,
            execution_key=key,
            input=wire.to_payload({"order": key, "items": [], "amount": amount, "scenario": scenario}),
        )
        request = execution_service_pb2.StartExecutionRequest(execution=spec)
        return self.executions.StartExecution(request, timeout=LIMIT_S).execution_id

    def outcome(self, execution_id: str) -> execution_pb2.Outcome:
        """Waits for the end of an execution and returns its outcome."""
        request = execution_service_pb2.AwaitExecutionRequest(
            execution_id=execution_id, wait=wire.to_duration(LIMIT_S)
        )
        answer = self.executions.AwaitExecution(request, timeout=LIMIT_S + 5)
        assert answer.HasField("ended"), f"still {answer.still_running.state} after {LIMIT_S} s"
        return answer.ended

    def run(self, key: str, scenario: str, amount: int = 20) -> execution_pb2.Outcome:
        return self.outcome(self.start(key, scenario, amount))

    def cancel(self, execution_id: str) -> None:
        request = execution_service_pb2.CancelExecutionRequest(execution_id=execution_id, reason="changed their mind")
        self.executions.CancelExecution(request, timeout=LIMIT_S)

    def terminate(self, execution_id: str) -> None:
        request = execution_service_pb2.TerminateExecutionRequest(execution_id=execution_id, reason="of no use")
        self.executions.TerminateExecution(request, timeout=LIMIT_S)

    def subscription(self, name: str) -> failure_service_pb2.Subscription:
        request = failure_service_pb2.GetSubscriptionRequest(
            subscription=failure_service_pb2.SubscriptionRef(name=name)
        )
        return self.failures.GetSubscription(request, timeout=LIMIT_S).subscription
