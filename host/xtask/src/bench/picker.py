"""The smallest picker: always the same endpoint, and bodies passed on as they are."""
import sys
from concurrent import futures

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as rpc

KEY = "x-gateway-destination-endpoint"


class Picker(rpc.ExternalProcessorServicer):
    def __init__(self, endpoint):
        self.endpoint = endpoint

    def Process(self, messages, _):
        for message in messages:
            kind = message.WhichOneof("request")
            answer = pb.ProcessingResponse()
            if kind == "request_headers":
                option = answer.request_headers.response.header_mutation.set_headers.add()
                option.header.key, option.header.raw_value = KEY, self.endpoint.encode()
                answer.request_headers.response.header_mutation.remove_headers.append("content-length")
                answer.dynamic_metadata["envoy.lb"] = {KEY: self.endpoint}
            elif kind in ("request_body", "response_body"):
                body = getattr(message, kind)
                chunk = getattr(answer, kind).response.body_mutation.streamed_response
                chunk.body, chunk.end_of_stream = body.body, body.end_of_stream
            else:
                getattr(answer, kind).SetInParent()
            yield answer


if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    rpc.add_ExternalProcessorServicer_to_server(Picker(sys.argv[2]), server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()
