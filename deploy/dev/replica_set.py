"""Makes the mongod on a port of this machine a replica set of one node, and waits until it takes writes.

A set that was made on another port is told its new one.
"""

import sys
import time

from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure

NOT_YET_INITIALIZED = 94

host = f"127.0.0.1:{sys.argv[1]}"
client = MongoClient(host, directConnection=True, serverSelectionTimeoutMS=30_000)


def configured():
    """Whether the set knows this port already; tells it otherwise."""
    try:
        config = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code != NOT_YET_INITIALIZED:
            raise
        client.admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": host}]})
        return False
    if config["members"][0]["host"] == host:
        return True
    config["members"][0]["host"] = host
    config["version"] += 1
    client.admin.command("replSetReconfig", config, force=True)
    return False


deadline = time.monotonic() + 60
while True:
    try:
        if configured() and client.admin.command("hello")["isWritablePrimary"]:
            break
    except AutoReconnect:
        pass  # A node that changes its role drops its connections.
    if time.monotonic() > deadline:
        sys.exit("no primary within 60 s")
    time.sleep(0.05)
