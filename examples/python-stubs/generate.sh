#!/usr/bin/env bash
# Generates the Python stubs of recoup.v1 in `generated/`. That folder holds nothing else and is not committed.
# Set PYTHON to an interpreter that has grpcio-tools. The default is python3.
set -euo pipefail
cd "$(dirname "$0")"
protos=../../proto
python=${PYTHON:-python3}

generator=$("$python" -c 'from importlib.metadata import version; print(version("grpcio-tools"))')
digest="grpcio-tools $generator pyi $(cd "$protos" && cat recoup/v1/*.proto | sha256sum)"
if [[ "$(cat generated/digest 2>/dev/null)" == "$digest" ]]; then
  exit 0
fi
rm -rf generated
mkdir generated
"$python" -m grpc_tools.protoc -I "$protos" --python_out=generated --pyi_out=generated --grpc_python_out=generated \
  "$protos"/recoup/v1/*.proto
echo "$digest" >generated/digest
