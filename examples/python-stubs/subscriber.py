"""A subscriber of the failure feed on nothing but generated stubs: prints one JSON document per event.

It keeps its cursor in a file, so that it goes on where it was when it is started again: at least once, nothing skipped.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "generated"))

import grpc  # noqa: E402
from google.protobuf.json_format import MessageToDict  # noqa: E402
from recoup.v1 import failure_service_pb2, failure_service_pb2_grpc  # noqa: E402

TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)


def request(arguments, cursor):
    wanted = failure_service_pb2.SubscribeFailuresRequest(consumer="python-stubs")
    wanted.filter.namespace = arguments.namespace
    wanted.filter.workflows.extend(arguments.workflow)
    if cursor:
        wanted.cursor = cursor
    elif arguments.from_beginning:
        wanted.position = failure_service_pb2.FEED_POSITION_BEGINNING
    return wanted


def responses(arguments, cursor):
    """Every response, over as many streams as it takes."""
    # A stream that fell silent is noticed by pings, whatever lies between.
    options = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]
    retry = 0
    while True:
        with grpc.insecure_channel(arguments.address, options=options) as channel:
            service = failure_service_pb2_grpc.FailureServiceStub(channel)
            try:
                for response in service.SubscribeFailures(request(arguments, cursor)):
                    retry = 0
                    yield response
                    for delivery in response.deliveries:
                        cursor = delivery.cursor
                    cursor = response.cursor or cursor
            except grpc.RpcError as error:
                if error.code() not in TRANSIENT:
                    raise
        retry += 1
        time.sleep(random.uniform(0.5, 1.0) * min(10.0, 0.1 * 2**retry))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:7430", help="host:port of the server")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--workflow", action="append", default=[], help="only of this workflow; may be repeated")
    parser.add_argument("--from-beginning", action="store_true", help="where no cursor is kept yet")
    parser.add_argument("--cursor-file", type=Path, help="where to keep the cursor; default: nowhere")
    parser.add_argument("--limit", type=int, help="end after this many events; default: never")
    arguments = parser.parse_args()

    kept = arguments.cursor_file
    cursor = kept.read_text().strip() if kept and kept.exists() else ""
    left = arguments.limit
    for response in responses(arguments, cursor):
        for delivery in response.deliveries:
            print(json.dumps(MessageToDict(delivery.event)), flush=True)
            # After the event is out: what is lost before this comes again.
            if kept:
                kept.write_text(delivery.cursor)
            if left is not None:
                left -= 1
                if left <= 0:
                    return
        if kept and response.cursor and not response.deliveries:
            kept.write_text(response.cursor)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
