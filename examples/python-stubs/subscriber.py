"""Reads the failure feed and prints one JSON line per event. Uses nothing but generated stubs.

Reading starts with new events, at the beginning of the feed, or after a cursor. To resume later, pass the `cursor` of
the last line to --cursor. With --subscription the server remembers the position instead: every event is acknowledged
after it has been printed, and the next run resumes after the acknowledged events. If the stream breaks, it is opened
again at the same position.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from wire import PASSING_CODES, Backoff, connect, refusal_reason

from recoup.v1 import failure_service_pb2, failure_service_pb2_grpc

log = logging.getLogger("subscriber")

CALL_LIMIT_S = 10.0
#: Reasons for a refusal that may go away: the server may not have noticed yet that the previous consumer has left.
PASSING_REASONS = frozenset({"SUBSCRIPTION_IN_USE"})


class Subscriber:
    """Prints failure events and keeps the position in the feed."""

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        namespace: str,
        workflows: list[str],
        from_beginning: bool,
        cursor: str,
        subscription: str,
    ) -> None:
        self._stub = failure_service_pb2_grpc.FailureServiceStub(channel)
        self._filter = failure_service_pb2.FailureFilter(namespace=namespace, workflows=workflows)
        self._position = (
            failure_service_pb2.FEED_POSITION_BEGINNING if from_beginning else failure_service_pb2.FEED_POSITION_NOW
        )
        self._cursor = cursor
        self._durable = failure_service_pb2.SubscriptionRef(namespace=namespace, name=subscription)
        self._stream: Any = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Prints events until `stop` is called. Raises grpc.RpcError if repeating the call would not help."""
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                if self._durable.name:
                    self._create_subscription()
                for response in self._open():
                    backoff.reset()
                    for delivery in response.deliveries:
                        self._take(delivery)
                    # Keep-alives also carry a cursor, which is past the events that the filter leaves out.
                    self._cursor = response.cursor
                log.warning("the stream ended; opening it again")
            except grpc.RpcError as error:
                if self._stopping.is_set():
                    return
                if error.code() not in PASSING_CODES and refusal_reason(error) not in PASSING_REASONS:
                    raise
                log.warning("%s; opening the stream again", error.details())
            self._stopping.wait(backoff.next_s())

    def stop(self) -> None:
        """Ends `run` after the event that is being printed. May be called from another thread."""
        with self._lock:
            self._stopping.set()
            if self._stream is not None:
                self._stream.cancel()

    def _create_subscription(self) -> None:
        """Creates the durable subscription. An existing one is not changed."""
        try:
            wanted = failure_service_pb2.GetSubscriptionRequest(subscription=self._durable)
            self._stub.GetSubscription(wanted, timeout=CALL_LIMIT_S)
        except grpc.RpcError as error:
            if refusal_reason(error) != "SUBSCRIPTION_NOT_FOUND":
                raise
            subscription = failure_service_pb2.Subscription(
                namespace=self._durable.namespace,
                name=self._durable.name,
                filter=self._filter,
                position=self._position,
            )
            request = failure_service_pb2.CreateSubscriptionRequest(subscription=subscription)
            self._stub.CreateSubscription(request, timeout=CALL_LIMIT_S)

    def _open(self) -> Iterator[failure_service_pb2.SubscribeFailuresResponse]:
        request = failure_service_pb2.SubscribeFailuresRequest(consumer="python-stubs")
        if self._durable.name:
            request.subscription.CopyFrom(self._durable)
        else:
            request.filter.CopyFrom(self._filter)
            if self._cursor:
                request.cursor = self._cursor
            else:
                request.position = self._position
        with self._lock:
            self._stream = self._stub.SubscribeFailures(request)
            if self._stopping.is_set():
                self._stream.cancel()
            return self._stream

    def _take(self, delivery: failure_service_pb2.FailureDelivery) -> None:
        """Prints an event, then acknowledges it. In this order a crash may repeat an event, but never loses one."""
        line = MessageToDict(delivery.event) | {"cursor": delivery.cursor, "delivery": delivery.delivery}
        print(json.dumps(line), flush=True)
        self._cursor = delivery.cursor
        if self._durable.name:
            request = failure_service_pb2.AckFailuresRequest(
                subscription=self._durable, ack_tokens=[delivery.ack_token]
            )
            for result in self._stub.AckFailures(request, timeout=CALL_LIMIT_S).results:
                if result.reason:
                    log.warning("the acknowledgement came too late: the event will be delivered again")


def main() -> int:
    """Prints the feed until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:7430", help="host:port of the server")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--workflow", action="append", default=[], help="only events of this workflow; may be repeated")
    parser.add_argument(
        "--from-beginning",
        action="store_true",
        help="start with the oldest event, unless a cursor or a subscription sets the position; default: new events",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--cursor", default="", help="resume after the line that had this cursor")
    place.add_argument("--subscription", default="", help="name of a durable subscription; created if missing")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(message)s")

    refusals: list[grpc.RpcError] = []
    ended = threading.Event()
    with connect(arguments.address) as channel:
        subscriber = Subscriber(
            channel,
            namespace=arguments.namespace,
            workflows=arguments.workflow,
            from_beginning=arguments.from_beginning,
            cursor=arguments.cursor,
            subscription=arguments.subscription,
        )

        def read() -> None:
            try:
                subscriber.run()
            except grpc.RpcError as error:
                refusals.append(error)
            finally:
                ended.set()

        # Another thread reads the stream, so that this one is free to handle the signal that ends the program.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        reader = threading.Thread(target=read)
        reader.start()
        ended.wait()
        subscriber.stop()
        reader.join()
    for error in refusals:
        print(f"refused: {refusal_reason(error)} {error.details()}", file=sys.stderr)
    return 1 if refusals else 0


if __name__ == "__main__":
    sys.exit(main())
