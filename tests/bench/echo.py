"""A gRPC server that answers Sign with the same words each time: `python -m tests.bench.echo PORT`.

Messages of the real sizes, decoded and encoded; no access check, no claims, no hash, no HSM. What
this costs, gRPC costs.
"""

import asyncio
import signal
import sys
from typing import Any

import grpc
import uvloop
from kmsapi.v1 import signing_pb2 as pb

IDENTITY = "e" * 432 + ";info=<https://cr.example.org/0000000000000001.pem>;alg=ES256;ppt=shaken"
ORIGID = "123e4567-e89b-42d3-a456-426655440000"


async def sign(request: pb.SignRequest, context: Any) -> pb.SignResponse:
    """As many results as there are PASSporTs."""
    response = pb.SignResponse(sequence=request.sequence, epoch=1)
    for _ in request.passports:
        response.results.add(signed=pb.Signed(identity=IDENTITY, origid=ORIGID))
    return response


async def main(port: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    handler = grpc.unary_unary_rpc_method_handler(
        sign, pb.SignRequest.FromString, pb.SignResponse.SerializeToString
    )
    methods = grpc.method_handlers_generic_handler("kmsapi.v1.Signing", {"Sign": handler})
    server.add_generic_rpc_handlers((methods,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await stopped.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
