"""Registers workflow.yaml, runs it once and prints how it ended.

    ./start.py '{"booking": "b-1", "amount": 20, "card": "shaky"}'
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path

import grpc

from wire import connect, enum_name, from_payload, refusal_reason, to_duration, to_payload

from recoup.v1 import (
    definition_pb2,
    execution_pb2,
    execution_service_pb2,
    execution_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

#: Longest time that one call waits for the end; asking again goes on waiting.
WAIT_S = 30.0


def register(channel: grpc.Channel, namespace: str, text: str) -> str:
    """Registers a workflow written as YAML, and returns its name. Nothing changes when it is there already."""
    request = workflow_service_pb2.RegisterWorkflowRequest(
        namespace=namespace, source=definition_pb2.DefinitionSource(text=text)
    )
    return workflow_service_pb2_grpc.WorkflowServiceStub(channel).RegisterWorkflow(request, timeout=10).name


def run(channel: grpc.Channel, namespace: str, workflow: str, workflow_input: object) -> execution_pb2.Outcome:
    """Starts an execution and waits until it has ended, however long that takes."""
    stub = execution_service_pb2_grpc.ExecutionServiceStub(channel)
    spec = execution_pb2.ExecutionSpec(namespace=namespace, workflow=workflow, input=to_payload(workflow_input))
    # Should the answer get lost: the same request id makes a repetition of the call start nothing new.
    started = stub.StartExecution(
        execution_service_pb2.StartExecutionRequest(execution=spec, request_id=str(uuid.uuid4())), timeout=10
    )
    request = execution_service_pb2.AwaitExecutionRequest(execution_id=started.execution_id, wait=to_duration(WAIT_S))
    while True:
        answer = stub.AwaitExecution(request, timeout=WAIT_S + 10)
        if answer.HasField("ended"):
            return answer.ended


def main() -> int:
    """Runs one execution; exit code 1 says that it did not succeed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=json.loads, help="input as JSON")
    parser.add_argument("--address", default="127.0.0.1:7430", help="HOST:PORT of the server")
    parser.add_argument("--namespace", default="default")
    arguments = parser.parse_args()

    with connect(arguments.address) as channel:
        try:
            workflow = register(channel, arguments.namespace, Path(__file__).with_name("workflow.yaml").read_text())
            outcome = run(channel, arguments.namespace, workflow, arguments.input)
        except grpc.RpcError as error:
            print(f"refused: {refusal_reason(error)} {error.details()}", file=sys.stderr)
            return 2
    state = enum_name(execution_pb2.ExecutionState, outcome.state, "EXECUTION_STATE_")
    if outcome.HasField("error"):
        print(f"{state}: {outcome.error.type} in step {outcome.failed_step}: {outcome.error.message}")
        return 1
    print(f"{state}: {json.dumps(from_payload(outcome.output))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
