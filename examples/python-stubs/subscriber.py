"""Reads the failure feed on nothing but generated stubs and prints one JSON line per event.

It starts now, at the beginning or after a cursor, and the `cursor` of its last line is where to go
on. Or the server keeps the place: with --subscription it acknowledges every event it has printed, and
a later start goes on behind it. A stream that breaks is opened again where it was.
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
#: Reasons for a refusal that may go away: here, the previous consumer is not quite gone yet.
PASSING_REASONS = frozenset({"SUBSCRIPTION_IN_USE"})


class Subscriber:
    """Prints failure events and knows how far it got."""

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
        """Prints events until `stop` is called. Raises grpc.RpcError when asking again would not help."""
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                if self._durable.name:
                    self._create_subscription()
                for response in self._open():
                    backoff.reset()
                    for delivery in response.deliveries:
                        self._take(delivery)
                    # Keep-alives also carry a cursor. It is past the events that the filter leaves out.
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
        """Ends `run` after the event in hand. For another thread."""
        with self._lock:
            self._stopping.set()
            if self._stream is not None:
                self._stream.cancel()

    def _create_subscription(self) -> None:
        """Makes the durable subscription. One that is there is left as it stands."""
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
        """Prints an event, then acknowledges it: in this order a crash repeats an event and loses none."""
        line = MessageToDict(delivery.event) | {"cursor": delivery.cursor, "delivery": delivery.delivery}
        print(json.dumps(line), flush=True)
        self._cursor = delivery.cursor
        if self._durable.name:
            request = failure_service_pb2.AckFailuresRequest(
                subscription=self._durable, ack_tokens=[delivery.ack_token]
            )
            for result in self._stub.AckFailures(request, timeout=CALL_LIMIT_S).results:
                if result.reason:
                    log.warning("the acknowledgement came too late: the event comes again")


def main() -> int:
    """Prints the feed until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:7430", help="host:port of the server")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--workflow", action="append", default=[], help="only of this workflow; may be repeated")
    parser.add_argument("--from-beginning", action="store_true", help="where there is no place to go on; default: now")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--cursor", default="", help="go on after this cursor of an earlier line")
    place.add_argument("--subscription", default="", help="name of a durable subscription; made if it is not there")
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

        # The stream is read in another thread, so that this one is free to handle the signal that ends it.
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
