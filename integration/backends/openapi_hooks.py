"""What the document can't say: how a binary batch looks, and which ciphertexts decrypt."""

import http.client
import os
import socket
import string

import schemathesis
from hypothesis import strategies as st


def encrypt(plaintext):
    connection = http.client.HTTPConnection("sidekey")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(os.environ["SIDEKEY_SOCKET"])
    headers = {"Content-Type": "application/octet-stream"}
    connection.request("POST", "/v1/keyrings/demo/encrypt", plaintext, headers)
    return connection.getresponse().read()


# Messages, and a stream: a body that is iterated over is sent without a length.
CIPHERTEXTS = [encrypt(b""), encrypt(b"a plaintext"), encrypt(iter([b"a stream"]))]


def framed(items):
    return b"".join(len(item).to_bytes(4, "big") + item for item in items)


item = st.one_of(st.binary(max_size=80), st.sampled_from(CIPHERTEXTS))
# None that ends within a frame: that breaks an answer off which has begun, and no document can describe it.
batch = st.builds(lambda flags, items: bytes([flags]) + framed(items), st.sampled_from([0, 0, 0, 1, 2]), st.lists(item, max_size=8))
schemathesis.openapi.media_type("application/vnd.sidekey.batch", batch)
schemathesis.openapi.media_type("application/octet-stream", st.one_of(item, st.binary(max_size=2000)))
