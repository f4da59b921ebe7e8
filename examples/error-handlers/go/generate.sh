#!/usr/bin/env bash
# Generates the Go stubs of recoup.v1 in `gen/`. That folder holds nothing else and is not committed.
# Set PYTHON to an interpreter that has grpcio-tools, which contains protoc. The default is python3.
set -euo pipefail
cd "$(dirname "$0")"
protos=../../../proto

protobuf=v1.36.12
grpc=v1.6.2
digest="protoc-gen-go $protobuf protoc-gen-go-grpc $grpc $(cd "$protos" && cat recoup/v1/*.proto | sha256sum)"
if [[ "$(cat gen/digest 2>/dev/null)" == "$digest" ]]; then
  exit 0
fi
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
GOBIN=$plugins go install "google.golang.org/protobuf/cmd/protoc-gen-go@$protobuf"
GOBIN=$plugins go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$grpc"
rm -rf gen
mkdir gen
PATH=$plugins:$PATH "${PYTHON:-python3}" -m grpc_tools.protoc -I "$protos" --go_out=gen --go-grpc_out=gen \
  "$protos"/recoup/v1/*.proto
echo "$digest" >gen/digest
