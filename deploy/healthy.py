"""The container's health check: exit status 0 while the server at DMESR_HEALTH_ADDRESS says SERVING.

Health needs no token (`server.open_health`). With TLS, DMESR_HEALTH_CA names the authority's certificate.
"""

import os
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

address = os.environ.get("DMESR_HEALTH_ADDRESS", "localhost:50051")
service = os.environ.get("DMESR_HEALTH_SERVICE", "")
authority = os.environ.get("DMESR_HEALTH_CA")
credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes()) if authority else None
with grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address) as channel:
    try:
        asked = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=4)
    except grpc.RpcError as error:
        sys.exit(f"{address}: {error.code().name}: {error.details()}")
if answer.status != health_pb2.HealthCheckResponse.SERVING:
    sys.exit(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}")
