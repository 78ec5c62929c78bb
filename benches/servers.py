"""The servers of the bench: each starts on a free port of loopback, and is ended by its id.

Process ids are also kept in files of the working directory, so that run.sh ends what is left when the bench breaks.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import machine

ROOT = Path(__file__).resolve().parent.parent
# Where free ports are looked for.
PORTS = iter(range(8190, 9000))


def free_port():
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    sys.exit("no free port")


def wait_until(holds, what, seconds=60):
    """Servers are asked until they answer; nothing is measured meanwhile."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"{what} takes more than {seconds} s")
        time.sleep(0.02)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A process that serves until it is stopped. As a context manager, it is stopped at the end."""

    def __init__(self, work, name, command, environment=None):
        self.work, self.name = work, name
        self.pid_file, log = work / f"{name}.pid", work / f"{name}.log"
        with log.open("ab") as output:
            whole = {**os.environ, **(environment or {})}
            self.process = subprocess.Popen([str(word) for word in command], env=whole, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.pid = self.process.pid
        self.pid_file.write_text(f"{self.pid}\n")

    def wait(self, is_ready):
        def holds():
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended with {self.process.returncode}: see {self.name}.log")
            return is_ready()

        wait_until(holds, f"the start of {self.name}")

    def seconds(self):
        return machine.process_seconds(self.pid)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.pid_file.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Postgres:
    """The server that run.sh has started, and one of its databases."""

    def __init__(self, programs, port, postmaster, database="headstart"):
        self.bin, self.port, self.postmaster, self.database = programs, port, postmaster, database

    def other(self, database):
        """A new database of the same server."""
        self.ask(f'CREATE DATABASE "{database}"')
        return Postgres(self.bin, self.port, self.postmaster, database)

    @property
    def url(self):
        return f"postgres://postgres@127.0.0.1:{self.port}/{self.database}?sslmode=disable"

    def psql(self):
        base = [f"{self.bin}/psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        return [*base, "-d", self.database]

    def ask(self, *statements):
        commands = [word for statement in statements for word in ("-c", statement)]
        return subprocess.run([*self.psql(), *commands], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def run(self, text):
        """A script of any length; what it prints is thrown away."""
        subprocess.run([*self.psql(), "-f", "-"], check=True, input=text, text=True, stdout=subprocess.DEVNULL)

    def seconds(self):
        return machine.family_seconds(self.postmaster)


class Mongo:
    """The server that run.sh has started, by its driver for Python, which deploy/dev/mongod.sh brings along."""

    def __init__(self, port, pid):
        import pymongo

        self.port, self.pid = port, pid
        self.client = pymongo.MongoClient("127.0.0.1", port, directConnection=True)

    def url(self, database):
        return f"mongodb://127.0.0.1:{self.port}/{database}?replicaSet=rs0"

    def seconds(self):
        return machine.process_seconds(self.pid)

    def sent(self):
        """Bytes that the server has sent to anyone. The answer to this question counts, too."""
        leave_out = dict.fromkeys(["repl", "metrics", "wiredTiger", "locks", "tcmalloc", "transactions", "opLatencies"], 0)
        return self.client.admin.command({"serverStatus": 1, **leave_out})["network"]["bytesOut"]


class Headstart:
    """The service, or one of its commands, with settings of its own."""

    def __init__(self, bench, name, database, store, **settings):
        self.bench, self.name = bench, name
        self.environment = {
            # The build's own defaults, whatever stands in the working directory.
            "HEADSTART_CONFIG": str(bench.empty),
            "HEADSTART_CATALOG_PATH": str(bench.catalog_file),
            "HEADSTART_POSTGRES_URL": database.url,
            "HEADSTART_STORE_URL": store,
            "HEADSTART_DUMP_SPOOL_DIR": str(bench.spool),
            # No snapshot is made while something is measured, but where it is asked for.
            "HEADSTART_DUMP_BACKGROUND": "false",
            "HEADSTART_AUTH_HS256_SECRET": bench.secret,
            **{f"HEADSTART_{key.upper()}": str(value) for key, value in settings.items()},
        }

    def command(self, *arguments):
        command = [self.bench.binary, *arguments]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"headstart {' '.join(arguments)} failed:\n{done.stderr}")
        return done.stdout.strip()

    def used(self, *arguments):
        """Runs a command; gives its seconds on the clock, of processor time, and its most memory in MiB."""
        began = time.monotonic()
        environment = {**os.environ, **self.environment}
        process = subprocess.Popen([self.bench.binary, *arguments], env=environment, stdout=subprocess.DEVNULL)
        memory, processor = machine.watched(process)
        return time.monotonic() - began, processor, memory

    def serve(self):
        http, admin = free_port(), free_port()
        own = {"HEADSTART_HTTP_LISTEN": f"127.0.0.1:{http}", "HEADSTART_ADMIN_LISTEN": f"127.0.0.1:{admin}"}
        server = Server(self.bench.work, self.name, [self.bench.binary, "serve"], {**self.environment, **own})
        server.url, server.admin = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{admin}"
        server.wait(lambda: answers(f"{server.admin}/readyz"))
        return server

    def delete(self, org):
        self.command("snapshots", "delete", "--org", org)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def metric(server, name):
    """The sum of a counter or gauge of the service, over all labels."""
    with urllib.request.urlopen(f"{server.admin}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^headstart_{name}(?:\{{.*\}})? (\S+)", text, re.M))


def nginx_program():
    return subprocess.run([ROOT / "deploy/dev/nginx.sh", "bin"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def nginx(bench, folder, workers):
    """So many workers that serve the files of a folder as zstd, with sendfile and without a log."""
    program, name = nginx_program(), f"nginx-{workers}"
    prefix, port = bench.work / name, free_port()
    prefix.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)
    paths = "".join(f"{kind}_temp_path {prefix}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    (prefix / "nginx.conf").write_text(
        f"""{"user root;" if os.getuid() == 0 else ""} worker_processes {workers}; daemon off; pid {prefix}/pid; error_log {prefix}/error.log;
        events {{ worker_connections 1024; }}
        http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; types {{ }} default_type application/x-ndjson; {paths}
            server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ root {folder}; add_header Content-Encoding zstd; }} }} }}
        """
    )
    server = Server(bench.work, name, [program, "-p", prefix, "-e", f"{prefix}/error.log", "-c", f"{prefix}/nginx.conf"])
    server.seconds = lambda: machine.family_seconds(server.pid)
    server.url = f"http://127.0.0.1:{port}"
    server.wait(lambda: listens(port))
    return server


def packages(folder):
    """The packages of a server of benches/, under .dev/; installed when they are missing."""
    there = ROOT / ".dev" / f"bench-{folder}"
    there.mkdir(parents=True, exist_ok=True)
    for file in (ROOT / "benches" / folder).iterdir():
        if file.suffix in (".json", ".mjs"):
            shutil.copy(file, there)
    if not (there / "node_modules").exists():
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=there, check=True, stdout=sys.stderr)
    return there


def node(bench, folder, name, environment):
    """A server of benches/, written by hand."""
    port = free_port()
    whole = {"NODE_ENV": "production", "SECRET": bench.secret, "PORT": str(port), **environment}
    server = Server(bench.work, name, ["node", packages(folder) / "server.mjs"], whole)
    server.url = f"http://127.0.0.1:{port}"
    server.wait(lambda: listens(port))
    return server


def new_secret():
    return secrets.token_hex(32)


def version(*command):
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""


def as_json(value):
    return json.dumps(value, separators=(",", ":"))
